//! Who makes a call: logins, tokens, cookies, and what goes back in the headers.

use std::sync::Arc;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{BasicAuth, HandshakeRequest, HandshakeResponse};
use futures::stream::StreamExt;
use prost::Message;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

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

fn ended() -> Status {
    Status::unauthenticated("the session is unknown or has ended; connect again")
}

impl Service {
    /// The call of a request: its session is found by what it shows.
    pub(crate) async fn called<T>(&self, request: Request<T>) -> Result<(Call, Headers, T), Status> {
        let (metadata, _, message) = request.into_parts();
        let (session, headers) = self.recognised(&metadata).await?;
        Ok((Call::new(&self.core, session, &metadata)?, headers, message))
    }

    async fn recognised(&self, metadata: &MetadataMap) -> Result<(Arc<ClientSession>, Headers), Status> {
        let sessions = &self.core.sessions;
        let session = match Shown::of(metadata)? {
            Shown::Bearer(token) => match sessions.find(&token) {
                Some(session) => session,
                None => self.of_static_token(&token).await?,
            },
            Shown::Cookie(id) => sessions.find(&id).ok_or_else(ended)?,
            Shown::Basic(user, password) => {
                let (token, session) = self.log_in_as(&user, &password).await?;
                return Ok((session, Headers { authorization: Some(bearer(&token)?), ..Headers::default() }));
            }
            Shown::Nothing if self.core.asks() => {
                return Err(Status::unauthenticated(
                    "the server asks who you are; connect with a user name and a password, or with a token",
                ));
            }
            Shown::Nothing => sessions.anonymous(),
        };
        Ok((session, Headers::default()))
    }

    /// A handshake: name and password in a header or in the message, a token back in both.
    pub(crate) async fn log_in(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<<Self as FlightService>::HandshakeStream>, Status> {
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
            Shown::Basic(user, password) => self.log_in_as(&user, &password).await?.0,
            Shown::Bearer(token) => {
                if self.core.sessions.find(&token).is_none() {
                    self.of_static_token(&token).await?;
                }
                token
            }
            Shown::Nothing | Shown::Cookie(_) if self.core.asks() => {
                return Err(Status::unauthenticated(
                    "the handshake shows no name and password; the server asks for them",
                ));
            }
            Shown::Nothing | Shown::Cookie(_) => self.core.sessions.open(None, self.core.engine.session())?.0,
        };
        let answer = HandshakeResponse { protocol_version: 0, payload: token.clone().into_bytes().into() };
        let headers = Headers { authorization: Some(bearer(&token)?), ..Headers::default() };
        Ok(headers.on(futures::stream::iter([Ok(answer)]).boxed()))
    }

    /// A new session of a user. Where the server does not ask, any name and password will do.
    async fn log_in_as(&self, user: &str, password: &str) -> Result<(String, Arc<ClientSession>), Status> {
        let core = &self.core;
        if !core.asks() {
            return core.sessions.open(None, core.engine.session());
        }
        let is_right = core.engine.verify_password(user, password).await.map_err(|error| status_of(&error))?;
        if !is_right {
            return Err(Status::unauthenticated("the user name or the password is wrong"));
        }
        let session = core.engine.session_as(user).await.map_err(|error| status_of(&error))?;
        core.sessions.open(Some(user.to_owned()), session)
    }

    /// The session of a token that the server was started with; where the server does not ask, of any token that is none
    /// of its own.
    async fn of_static_token(&self, token: &str) -> Result<Arc<ClientSession>, Status> {
        let core = &self.core;
        match core.user_of_token(token) {
            Some(user) => {
                let session = core.engine.session_as(&user).await.map_err(|error| status_of(&error))?;
                core.sessions.open_as(token, Some(user), session)
            }
            None if !core.asks() && !crate::sessions::is_own(token) => {
                core.sessions.open_as(token, None, core.engine.session())
            }
            None => Err(ended()),
        }
    }
}
