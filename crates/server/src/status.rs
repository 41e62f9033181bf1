//! Errors of the engine as gRPC statuses, and back: what the shell shows of a remote error is what it shows of a local one.

use engine::{Error, ErrorKind};
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// The trailer that holds an [`ErrorDetail`].
const DETAIL: &str = "sagitta-error-bin";

/// What a status cannot say by its code and message.
#[derive(Clone, PartialEq, Eq, Message)]
struct ErrorDetail {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(uint64, optional, tag = "3")]
    start: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    end: Option<u64>,
    #[prost(string, optional, tag = "5")]
    hint: Option<String>,
}

/// Each kind with its code: the first of a code is what the code alone stands for.
const CODES: &[(ErrorKind, Code, &str)] = &[
    (ErrorKind::Invalid, Code::InvalidArgument, "invalid"),
    (ErrorKind::NotFound, Code::NotFound, "not_found"),
    (ErrorKind::AlreadyExists, Code::AlreadyExists, "already_exists"),
    (ErrorKind::Forbidden, Code::PermissionDenied, "forbidden"),
    (ErrorKind::Conflict, Code::Aborted, "conflict"),
    (ErrorKind::Unavailable, Code::Unavailable, "unavailable"),
    (ErrorKind::Exhausted, Code::ResourceExhausted, "exhausted"),
    (ErrorKind::Corrupt, Code::DataLoss, "corrupt"),
    (ErrorKind::Unsupported, Code::Unimplemented, "unsupported"),
    (ErrorKind::Cancelled, Code::Cancelled, "cancelled"),
    (ErrorKind::TimedOut, Code::DeadlineExceeded, "timed_out"),
    (ErrorKind::Internal, Code::Internal, "internal"),
];

/// The status of an error. Its message has the hint in it; the place in the SQL is in a trailer.
pub(crate) fn status_of(error: &Error) -> Status {
    let (code, kind) = CODES
        .iter()
        .find(|(kind, ..)| *kind == error.kind)
        .map_or((Code::Internal, "internal"), |(_, code, name)| (*code, *name));
    let message = match &error.hint {
        Some(hint) => format!("{}; {hint}", error.message),
        None => error.message.clone(),
    };
    let detail = ErrorDetail {
        kind: kind.to_owned(),
        message: error.message.clone(),
        start: error.place.as_ref().map(|place| place.start as u64),
        end: error.place.as_ref().map(|place| place.end as u64),
        hint: error.hint.clone(),
    };
    let mut trailers = MetadataMap::new();
    trailers.insert_bin(DETAIL, MetadataValue::from_bytes(&detail.encode_to_vec()));
    Status::with_metadata(code, message, trailers)
}

/// The error of a status, from a server of ours or from another.
pub(crate) fn error_of(status: &Status) -> Error {
    let detail = status.metadata().get_bin(DETAIL).and_then(|value| value.to_bytes().ok());
    let detail = detail.and_then(|bytes| ErrorDetail::decode(bytes).ok());
    let by_name = |name: &str| CODES.iter().find(|(.., other)| *other == name).map(|(kind, ..)| *kind);
    let by_code = CODES.iter().find(|(_, code, _)| *code == status.code()).map(|(kind, ..)| *kind);
    let Some(detail) = detail else {
        let kind = by_code.unwrap_or(match status.code() {
            Code::Unauthenticated | Code::FailedPrecondition | Code::OutOfRange => ErrorKind::Invalid,
            Code::Unknown => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        });
        return Error::new(kind, status.message());
    };
    let place = match (detail.start, detail.end) {
        (Some(start), Some(end)) if start <= end => {
            Some(usize::try_from(start).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(usize::MAX))
        }
        _ => None,
    };
    let kind = by_name(&detail.kind).or(by_code).unwrap_or(ErrorKind::Internal);
    Error { place, hint: detail.hint, ..Error::new(kind, detail.message) }
}

/// A message of a client that cannot be read.
pub(crate) fn malformed(what: &str, why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{what} cannot be read: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_its_status() {
        for (kind, code, _) in CODES {
            let error =
                Error { place: Some(3..7), hint: Some("did you mean \"docs\"?".into()), ..Error::new(*kind, "ä b") };
            let status = status_of(&error);
            assert_eq!(status.code(), *code);
            assert!(status.message().contains("did you mean"), "{}", status.message());
            let back = error_of(&status);
            assert_eq!(
                (back.kind, back.message, back.place, back.hint),
                (*kind, "ä b".into(), error.place, error.hint)
            );
        }
    }

    #[test]
    fn a_status_of_another_server_has_a_kind_by_its_code() {
        assert_eq!(error_of(&Status::not_found("x")).kind, ErrorKind::NotFound);
        assert_eq!(error_of(&Status::unauthenticated("x")).kind, ErrorKind::Invalid);
    }
}
