//! Actions: prepared statements, cancelling, renewing, session options.

use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
    ActionCreatePreparedStatementRequest, ActionCreatePreparedSubstraitPlanRequest, Any, Command,
    CommandStatementSubstraitPlan, ProstMessageExt,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo,
    RenewFlightEndpointRequest,
};
use futures::stream::StreamExt;
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use crate::core::Call;
use crate::messages::{
    CREATE_PREPARED_STATEMENT_RESULT, CloseSessionResult, CloseStatus, CreatePreparedStatementResult,
    SetSessionOptionsRequest,
};
use crate::service::Service;
use crate::sessions::COOKIE;
use crate::status::malformed;

const CREATE_PREPARED: &str = "CreatePreparedStatement";
const CREATE_PREPARED_SUBSTRAIT: &str = "CreatePreparedSubstraitPlan";
const CLOSE_PREPARED: &str = "ClosePreparedStatement";
const CANCEL_QUERY: &str = "CancelQuery";
const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";
const RENEW_ENDPOINT: &str = "RenewFlightEndpoint";
const SET_OPTIONS: &str = "SetSessionOptions";
const GET_OPTIONS: &str = "GetSessionOptions";
const CLOSE_SESSION: &str = "CloseSession";

/// The actions that there are.
pub(crate) fn all() -> Vec<ActionType> {
    [
        (
            CREATE_PREPARED,
            "Prepares a statement: ActionCreatePreparedStatementRequest to ActionCreatePreparedStatementResult",
        ),
        (
            CREATE_PREPARED_SUBSTRAIT,
            "Prepares a Substrait plan: ActionCreatePreparedSubstraitPlanRequest to ActionCreatePreparedStatementResult",
        ),
        (CLOSE_PREPARED, "Closes a prepared statement: ActionClosePreparedStatementRequest"),
        (CANCEL_QUERY, "Cancels a query: ActionCancelQueryRequest to ActionCancelQueryResult"),
        (CANCEL_FLIGHT_INFO, "Cancels a query: CancelFlightInfoRequest to CancelFlightInfoResult"),
        (RENEW_ENDPOINT, "Lets an answer wait longer: RenewFlightEndpointRequest to FlightEndpoint"),
        (SET_OPTIONS, "Sets options of the session: SetSessionOptionsRequest to SetSessionOptionsResult"),
        (GET_OPTIONS, "The options of the session: GetSessionOptionsRequest to GetSessionOptionsResult"),
        (CLOSE_SESSION, "Closes the session: CloseSessionRequest to CloseSessionResult"),
    ]
    .into_iter()
    .map(|(name, description)| ActionType { r#type: name.to_owned(), description: description.to_owned() })
    .collect()
}

/// A message inside an `Any`.
fn unpack<M: ProstMessageExt>(body: &[u8]) -> Result<M, Status> {
    let any: Any = Message::decode(body).map_err(|error| malformed("the action", error))?;
    any.unpack().map_err(|error| malformed("the action", error))?.ok_or_else(|| {
        malformed("the action", format!("it holds a {}", any.type_url.rsplit(['/', '.']).next().unwrap_or_default()))
    })
}

impl Service {
    pub(crate) async fn act(
        &self,
        request: Request<Action>,
    ) -> Result<Response<<Self as arrow_flight::flight_service_server::FlightService>::DoActionStream>, Status> {
        let (mut call, mut headers, action) = self.called(request).await?;
        let body = &*action.body;
        if action.r#type == SET_OPTIONS && call.session.is_anonymous() {
            // Such a client has a session from now on, if it keeps cookies.
            let (id, session) = self.core.sessions.open(self.core.engine.session())?;
            let cookie = MetadataValue::try_from(format!("{COOKIE}={id}"))
                .map_err(|error| Status::internal(error.to_string()))?;
            headers.cookie = Some(cookie);
            call.session = session;
        }
        let results = match action.r#type.as_str() {
            CREATE_PREPARED => {
                let request: ActionCreatePreparedStatementRequest = unpack(body)?;
                if request.transaction_id.is_some_and(|id| !id.is_empty()) {
                    return Err(no_transactions());
                }
                let _text = call.text(&request.query)?;
                vec![result_of(&call.prepare(call.parse(&request.query)?).await?)]
            }
            CREATE_PREPARED_SUBSTRAIT => {
                let request: ActionCreatePreparedSubstraitPlanRequest = unpack(body)?;
                let ActionCreatePreparedSubstraitPlanRequest { plan, transaction_id } = request;
                let statement = call.of_substrait(&CommandStatementSubstraitPlan { plan, transaction_id })?;
                vec![result_of(&call.prepare(statement).await?)]
            }
            CLOSE_PREPARED => {
                let request: ActionClosePreparedStatementRequest = unpack(body)?;
                // One that is not this user's, or not so, is closed as far as this user goes.
                if let Ok((id, _)) = self.core.seal.open(call.owner().user, &request.prepared_statement_handle) {
                    self.core.handles.close(call.owner(), id);
                }
                vec![]
            }
            CANCEL_QUERY => {
                let request: ActionCancelQueryRequest = unpack(body)?;
                let info =
                    FlightInfo::decode(request.info).map_err(|error| malformed("the information to cancel", error))?;
                let status = call.cancel(&info).await;
                // CANCEL_RESULT_CANCELLED and CANCEL_RESULT_NOT_CANCELLABLE have the numbers of CancelStatus.
                vec![ActionCancelQueryResult { result: status as i32 }.as_any().encode_to_vec()]
            }
            CANCEL_FLIGHT_INFO => {
                let request = CancelFlightInfoRequest::decode(body).map_err(|error| malformed("the action", error))?;
                let status = call.cancel(&request.info.unwrap_or_default()).await;
                vec![CancelFlightInfoResult { status: status as i32 }.encode_to_vec()]
            }
            RENEW_ENDPOINT => vec![call.renew(body)?],
            SET_OPTIONS => {
                let request = SetSessionOptionsRequest::decode(body).map_err(|error| malformed("the action", error))?;
                vec![call.session.set_options(request.session_options).encode_to_vec()]
            }
            GET_OPTIONS => vec![call.session.options()?.encode_to_vec()],
            CLOSE_SESSION => {
                self.core.handles.close_session(call.owner().session);
                self.core.sessions.close_own(&call.session);
                vec![CloseSessionResult { status: CloseStatus::Closed as i32 }.encode_to_vec()]
            }
            "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => return Err(no_transactions()),
            other => {
                return Err(Status::unimplemented(format!(
                    "there is no action {other}; ListActions names those there are"
                )));
            }
        };
        let results = results.into_iter().map(|body| Ok(arrow_flight::Result { body: body.into() }));
        Ok(headers.on(futures::stream::iter(results).boxed()))
    }
}

/// What preparing a statement answers.
fn result_of(prepared: &CreatePreparedStatementResult) -> Vec<u8> {
    let type_url = CREATE_PREPARED_STATEMENT_RESULT.to_owned();
    Any { type_url, value: prepared.encode_to_vec().into() }.encode_to_vec()
}

pub(crate) fn no_transactions() -> Status {
    Status::unimplemented("there are no transactions of several statements: each statement is one of its own")
}

impl Call {
    /// Cancels the statement of an information: what runs of it ends, and its answer is forgotten.
    async fn cancel(&self, info: &FlightInfo) -> CancelStatus {
        let polled = info.flight_descriptor.as_ref().and_then(Self::id_of_poll);
        let handles = info.endpoint.iter().filter_map(|endpoint| handle_of(&endpoint.ticket.as_ref()?.ticket));
        let tickets = handles.filter_map(|handle| Some(self.ticket(&handle).ok()?.0));
        let mut is_known = false;
        for id in polled.into_iter().chain(tickets) {
            let Ok(Some(held)) = self.core.handles.find(self.owner(), id) else { continue };
            is_known |= self.core.handles.close(self.owner(), id);
            for query_id in held.query_ids() {
                // It may have ended by itself meanwhile.
                let _ = self.session.engine.cancel(&query_id).await;
            }
        }
        if is_known { CancelStatus::Cancelled } else { CancelStatus::NotCancellable }
    }

    fn renew(&self, body: &[u8]) -> Result<Vec<u8>, Status> {
        let request = RenewFlightEndpointRequest::decode(body).map_err(|error| malformed("the action", error))?;
        let mut endpoint = request.endpoint.ok_or_else(|| malformed("the action", "it names no endpoint"))?;
        let handle = endpoint.ticket.as_ref().and_then(|ticket| handle_of(&ticket.ticket));
        let handle = handle.ok_or_else(|| malformed("the endpoint", "its ticket is not that of an answer"))?;
        let (id, ticket) = self.ticket(&handle)?;
        if self.core.handles.find(self.owner(), id)?.is_none() {
            if ticket.is_expired() {
                return Err(crate::seal::unknown());
            }
            if ticket.replay.is_none() {
                return Err(ticket.kept_elsewhere());
            }
        }
        let expiry = self.core.handles.renew(self.owner(), id)?;
        // The old ticket is as good here, the new one everywhere.
        let ticket = crate::travel::Ticket { expires_us: crate::travel::micros(expiry), ..ticket };
        endpoint.ticket = Some(self.sealed(id, ticket));
        endpoint.expiration_time = Some(expiry.into());
        Ok(endpoint.encode_to_vec())
    }
}

/// The handle in a ticket of an answer.
fn handle_of(ticket: &[u8]) -> Option<bytes::Bytes> {
    let any: Any = Message::decode(ticket).ok()?;
    match Command::try_from(any).ok()? {
        Command::TicketStatementQuery(ticket) => Some(ticket.statement_handle),
        _ => None,
    }
}
