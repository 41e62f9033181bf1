//! Who makes a call: logins, tokens, cookies, and what goes back in the headers.

use std::sync::Arc;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{BasicAuth, HandshakeRequest, HandshakeResponse};
use futures::stream::StreamExt;
use prost::Message;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

use crate::certificate::common_name;
use crate::core::Call;
use crate::service::Service;
use crate::sessions::{ClientSession, Shown};
use crate::status::status_of;

/// What goes back beside an answer.
#[derive(Default)]
pub(crate) struct Headers {
    pub(crate) authorization: Option<MetadataValue<Ascii>>,
    pub(crate) cookie: Option<MetadataValue<Ascii>>,
}

impl Headers {
    /// An answer with these headers.
    pub(crate) fn on<T>(self, answer: T) -> Response<T> {
        let mut response = Response::new(answer);
        if let Some(authorization) = self.authorization {
            response.metadata_mut().insert("authorization", authorization);
        }
        if let Some(cookie) = self.cookie {
            response.metadata_mut().insert("set-cookie", cookie);
        }
        response
    }
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Status> {
    MetadataValue::try_from(format!("Bearer {token}")).map_err(|error| Status::internal(error.to_string()))
}

fn another() -> Status {
    Status::unauthenticated("the client's certificate names another user; connect as the user whom it names")
}

fn ended() -> Status {
    Status::unauthenticated("the session is unknown or has ended; connect again")
}

impl Service {
    /// The call of a request: its session is found by what it shows.
    pub(crate) async fn called<T>(&self, request: Request<T>) -> Result<(Call, Headers, T), Status> {
        let certified = self.certified(&request)?;
        let (metadata, _, message) = request.into_parts();
        let (session, headers) = self.recognised(&metadata, certified.as_deref()).await?;
        if session.is_of_dropped(&self.core.engine) {
            self.core.handles.close_session(session.owner().session);
            self.core.sessions.close_own(&session);
            return Err(ended());
        }
        if certified.is_some() && session.user() != certified.as_deref() {
            return Err(another());
        }
        Ok((Call::new(&self.core, session, &metadata)?, headers, message))
    }

    /// The user whom a client's certificate names, where that counts.
    fn certified<T>(&self, request: &Request<T>) -> Result<Option<String>, Status> {
        if !self.core.certificates_name_users {
            return Ok(None);
        }
        let certificates = request.peer_certs();
        let own = certificates.as_ref().and_then(|certificates| certificates.first());
        match own.and_then(|own| common_name(own)) {
            Some(name) => Ok(Some(name)),
            None => Err(Status::unauthenticated(
                "the subject of the client's certificate has no common name that can be the name of a user: exactly one, in UTF-8",
            )),
        }
    }

    async fn recognised(
        &self,
        metadata: &MetadataMap,
        certified: Option<&str>,
    ) -> Result<(Arc<ClientSession>, Headers), Status> {
        let sessions = &self.core.sessions;
        let session = match Shown::of(metadata)? {
            Shown::Bearer(token) => match sessions.find(&token) {
                Some(session) => session,
                None => self.of_static_token(&token).await?,
            },
            Shown::Cookie(id) => sessions.find(&id).ok_or_else(ended)?,
            Shown::Basic(user, _) if certified.is_some_and(|name| name != user) => return Err(another()),
            Shown::Basic(user, password) => {
                let (token, session) = self.log_in_as(&user, &password).await?;
                return Ok((session, Headers { authorization: Some(bearer(&token)?), ..Headers::default() }));
            }
            Shown::Nothing => match certified {
                Some(name) => self.of_certificate(name).await?,
                None if self.core.asks() => {
                    return Err(Status::unauthenticated(
                        "the server asks who you are; connect with a user name and a password, or with a token",
                    ));
                }
                None => sessions.anonymous(),
            },
        };
        Ok((session, Headers::default()))
    }

    /// A handshake: name and password in a header or in the message, a token back in both.
    pub(crate) async fn log_in(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<<Self as FlightService>::HandshakeStream>, Status> {
        let certified = self.certified(&request)?;
        let (metadata, _, mut messages) = request.into_parts();
        let shown = match Shown::of(&metadata)? {
            Shown::Nothing | Shown::Cookie(_) => match messages.message().await?.map(|message| message.payload) {
                Some(payload) if !payload.is_empty() => {
                    let BasicAuth { username, password } = BasicAuth::decode(payload)
                        .map_err(|_| Status::unauthenticated("the handshake holds no name and password; send them as BasicAuth or in the authorization header"))?;
                    Shown::Basic(username, password)
                }
                _ => Shown::Nothing,
            },
            shown => shown,
        };
        let token = match shown {
            Shown::Basic(user, _) if certified.as_ref().is_some_and(|name| *name != user) => return Err(another()),
            Shown::Basic(user, password) => self.log_in_as(&user, &password).await?.0,
            Shown::Bearer(token) => {
                let session = match self.core.sessions.find(&token) {
                    Some(session) => session,
                    None => self.of_static_token(&token).await?,
                };
                if certified.is_some() && session.user() != certified.as_deref() {
                    return Err(another());
                }
                token
            }
            Shown::Nothing | Shown::Cookie(_) => {
                let session = match &certified {
                    Some(name) => self.session_of(name).await?,
                    None if self.core.asks() => {
                        return Err(Status::unauthenticated(
                            "the handshake shows no name and password; the server asks for them",
                        ));
                    }
                    None => self.core.engine.session(),
                };
                self.core.sessions.open(session)?.0
            }
        };
        let answer = HandshakeResponse { protocol_version: 0, payload: token.clone().into_bytes().into() };
        let headers = Headers { authorization: Some(bearer(&token)?), ..Headers::default() };
        Ok(headers.on(futures::stream::iter([Ok(answer)]).boxed()))
    }

    /// A new session of a user. Where the server does not ask, any name and password will do.
    async fn log_in_as(&self, user: &str, password: &str) -> Result<(String, Arc<ClientSession>), Status> {
        let core = &self.core;
        if !core.asks() {
            return core.sessions.open(core.engine.session());
        }
        let is_right = core.engine.verify_password(user, password).await.map_err(|error| status_of(&error))?;
        if !is_right {
            return Err(Status::unauthenticated("the user name or the password is wrong"));
        }
        let session = core.engine.session_as(user).await.map_err(|error| status_of(&error))?;
        core.sessions.open(session)
    }

    /// The engine's session of the user whom a certificate names.
    async fn session_of(&self, name: &str) -> Result<engine::Session, Status> {
        self.core.engine.session_as(name).await.map_err(|error| match error.kind {
            engine::ErrorKind::NotFound => Status::unauthenticated(format!(
                "the certificate names user {name}, and there is no such user; an admin makes one with CREATE USER"
            )),
            _ => status_of(&error),
        })
    }

    /// The session that all clients share whose certificates name this user, and who do not log in.
    async fn of_certificate(&self, name: &str) -> Result<Arc<ClientSession>, Status> {
        let id = format!("{}-{name}", self.core.certified);
        match self.core.sessions.find(&id).filter(|session| !session.is_of_dropped(&self.core.engine)) {
            Some(session) => Ok(session),
            None => {
                self.core.sessions.close(&id);
                self.core.sessions.open_as(&id, self.session_of(name).await?)
            }
        }
    }

    /// The session of a token that the server was started with; where the server does not ask, of any token that is none
    /// of its own.
    async fn of_static_token(&self, token: &str) -> Result<Arc<ClientSession>, Status> {
        let core = &self.core;
        match core.user_of_token(token) {
            Some(user) => {
                let session = core.session_of_token(&user).await?;
                core.sessions.open_as(token, session)
            }
            None if !core.asks() && !crate::sessions::is_own(token) => {
                core.sessions.open_as(token, core.engine.session())
            }
            None => Err(ended()),
        }
    }
}
