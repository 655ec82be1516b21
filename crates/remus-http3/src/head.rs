//! Heads of requests and responses: field lines to and from the `http` types.
//! Spec: RFC 9114 §4.2, §4.3 and §4.4, RFC 9220.
//!
//! Whatever leaves this module is well-formed: pseudo-fields complete, once each and first, names in
//! lower case, nothing that belongs to a connection.

use std::fmt;

use bytes::{BufMut, Bytes};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONTENT_LENGTH, COOKIE, HOST, TE},
    uri::{Authority, PathAndQuery, Scheme},
};

use crate::{
    Code,
    fault::Fault,
    qpack::{Encoder, Field},
};

/// The `:protocol` of an extended CONNECT, in the extensions of its request. Spec: RFC 9220 §3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol(HeaderValue);

impl Protocol {
    /// A protocol name.
    #[must_use]
    pub const fn from_static(name: &'static str) -> Self {
        Self(HeaderValue::from_static(name))
    }

    /// The name, such as `webtransport`; empty when it is not text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// Whether it asks for a WebTransport session, by the name of any draft.
    #[must_use]
    pub fn is_webtransport(&self) -> bool {
        matches!(self.as_bytes(), b"webtransport" | b"webtransport-h3")
    }

    fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The fault of a message that breaks a rule of RFC 9114 §4.1.2.
const fn malformed(detail: &'static str) -> Fault {
    Fault::stream(Code::H3_MESSAGE_ERROR, detail)
}

/// Pseudo-fields, each at most once.
#[derive(Default)]
struct Pseudo {
    method: Option<Bytes>,
    scheme: Option<Bytes>,
    authority: Option<Bytes>,
    path: Option<Bytes>,
    protocol: Option<Bytes>,
    status: Option<Bytes>,
}

/// Splits pseudo-fields from the others, checking order, repetition and names.
fn split(fields: Vec<Field>) -> Result<(Pseudo, HeaderMap), Fault> {
    let mut pseudo = Pseudo::default();
    let mut headers = HeaderMap::new();
    let mut is_past_pseudo = false;
    for Field { name, value } in fields {
        if name.first() == Some(&b':') {
            if is_past_pseudo {
                return Err(malformed("a pseudo-field after a field"));
            }
            let slot = match &name[..] {
                b":method" => &mut pseudo.method,
                b":scheme" => &mut pseudo.scheme,
                b":authority" => &mut pseudo.authority,
                b":path" => &mut pseudo.path,
                b":protocol" => &mut pseudo.protocol,
                b":status" => &mut pseudo.status,
                _ => return Err(malformed("an unknown pseudo-field")),
            };
            if slot.replace(value).is_some() {
                return Err(malformed("a pseudo-field is repeated"));
            }
            continue;
        }
        is_past_pseudo = true;
        let name = HeaderName::from_lowercase(&name)
            .map_err(|_| malformed("a field name that is not a token in lower case"))?;
        let value = HeaderValue::from_maybe_shared(value)
            .map_err(|_| malformed("a field value with a control character"))?;
        if is_connection_specific(&name) {
            return Err(malformed("a field that belongs to a connection"));
        }
        if name == TE && value != "trailers" {
            return Err(malformed("TE says something else than trailers"));
        }
        headers
            .try_append(name, value)
            .map_err(|_| malformed("more fields than can be kept"))?;
    }
    Ok((pseudo, headers))
}

/// Fields of HTTP/1.1 connections, which have no meaning here. Spec: RFC 9114 §4.2.
fn is_connection_specific(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
    )
}

/// A request out of its field lines.
///
/// An extended CONNECT carries its [`Protocol`] in the extensions.
///
/// # Errors
///
/// `H3_MESSAGE_ERROR` for the stream.
pub fn decode_request(fields: Vec<Field>) -> Result<Request<()>, Fault> {
    let (pseudo, headers) = split(fields)?;
    if pseudo.status.is_some() {
        return Err(malformed("a request with :status"));
    }
    let method = pseudo
        .method
        .ok_or(malformed("a request without :method"))?;
    let method = Method::from_bytes(&method).map_err(|_| malformed("a wrong :method"))?;
    let authority = authority(pseudo.authority, &headers)?;
    let uri = if method == Method::CONNECT && pseudo.protocol.is_none() {
        if pseudo.scheme.is_some() || pseudo.path.is_some() {
            return Err(malformed(
                "CONNECT with :scheme or :path, but without :protocol",
            ));
        }
        Uri::from(authority.ok_or(malformed("CONNECT without :authority"))?)
    } else {
        let scheme = pseudo
            .scheme
            .ok_or(malformed("a request without :scheme"))?;
        let scheme = Scheme::try_from(&scheme[..]).map_err(|_| malformed("a wrong :scheme"))?;
        let path = pseudo.path.ok_or(malformed("a request without :path"))?;
        let path = match &path[..] {
            [b'/', ..] => PathAndQuery::from_maybe_shared(path),
            b"*" if method == Method::OPTIONS => PathAndQuery::from_maybe_shared(path),
            _ => return Err(malformed(":path does not begin with a slash")),
        };
        let path = path.map_err(|_| malformed("a wrong :path"))?;
        let authority = authority.ok_or(malformed("a request without :authority and Host"))?;
        Uri::builder()
            .scheme(scheme)
            .authority(authority)
            .path_and_query(path)
            .build()
            .map_err(|_| malformed("the pseudo-fields make no URI"))?
    };
    if pseudo.protocol.is_some() && method != Method::CONNECT {
        return Err(malformed(":protocol on another method than CONNECT"));
    }
    let protocol = pseudo
        .protocol
        .map(HeaderValue::from_maybe_shared)
        .transpose()
        .map_err(|_| malformed("a wrong :protocol"))?;
    content_length(&headers)?;
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_3;
    *request.headers_mut() = headers;
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(Protocol(protocol));
    }
    Ok(request)
}

/// The authority, out of `:authority` and Host, which must agree where both are there.
fn authority(pseudo: Option<Bytes>, headers: &HeaderMap) -> Result<Option<Authority>, Fault> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(malformed("Host is repeated"));
    }
    let bytes = match (pseudo, host) {
        (Some(pseudo), Some(host)) if pseudo != host => {
            return Err(malformed(":authority and Host differ"));
        }
        (Some(pseudo), _) => pseudo,
        (None, Some(host)) => Bytes::copy_from_slice(host),
        (None, None) => return Ok(None),
    };
    if bytes.contains(&b'@') {
        return Err(malformed("user information in :authority"));
    }
    Authority::from_maybe_shared(bytes)
        .map(Some)
        .map_err(|_| malformed("a wrong :authority"))
}

/// A response out of its field lines.
///
/// # Errors
///
/// `H3_MESSAGE_ERROR` for the stream.
pub fn decode_response(fields: Vec<Field>) -> Result<Response<()>, Fault> {
    let (pseudo, headers) = split(fields)?;
    let Pseudo {
        method: None,
        scheme: None,
        authority: None,
        path: None,
        protocol: None,
        status: Some(status),
    } = pseudo
    else {
        return Err(malformed(
            "a response needs :status and no other pseudo-field",
        ));
    };
    let status = StatusCode::from_bytes(&status).map_err(|_| malformed("a wrong :status"))?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(malformed(":status 101, which HTTP/3 does not have"));
    }
    content_length(&headers)?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = http::Version::HTTP_3;
    *response.headers_mut() = headers;
    Ok(response)
}

/// Trailers out of their field lines.
///
/// # Errors
///
/// `H3_MESSAGE_ERROR` for the stream.
pub fn decode_trailers(fields: Vec<Field>) -> Result<HeaderMap, Fault> {
    if fields.iter().any(|field| field.name.first() == Some(&b':')) {
        return Err(malformed("a pseudo-field in trailers"));
    }
    split(fields).map(|(_, headers)| headers)
}

/// The one length that Content-Length states, if it is there.
///
/// # Errors
///
/// `H3_MESSAGE_ERROR` for the stream, when it is no number or states two.
pub(crate) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Fault> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let this = value
            .to_str()
            .ok()
            .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse::<u64>().ok())
            .ok_or(malformed("Content-Length is no number"))?;
        if length.is_some_and(|length| length != this) {
            return Err(malformed("Content-Length states two lengths"));
        }
        length = Some(this);
    }
    Ok(length)
}

/// Why a head that the application made cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The URI of a request has no scheme and authority.
    #[error("the URI is not absolute")]
    NotAbsolute,
    /// The field section is over the limit that the peer announced.
    #[error("the field section is {bytes} bytes, above the peer's limit of {max}")]
    #[expect(missing_docs, reason = "the message names every field")]
    TooLarge { bytes: u64, max: u64 },
}

/// Appends the field section of `request`.
///
/// Fields that belong to a connection are left out, and Host, which `:authority` replaces.
///
/// # Errors
///
/// [`HeadError`]; what was appended is then of no use.
pub(crate) fn encode_request(
    request: &Request<()>,
    max_bytes: Option<u64>,
    out: &mut impl BufMut,
) -> Result<(), HeadError> {
    let uri = request.uri();
    let authority = uri.authority().ok_or(HeadError::NotAbsolute)?;
    let mut encoder = Encoder::new(out);
    encoder.field(":method", request.method().as_str().as_bytes());
    let protocol = request.extensions().get::<Protocol>();
    if request.method() != Method::CONNECT || protocol.is_some() {
        let scheme = uri.scheme_str().ok_or(HeadError::NotAbsolute)?;
        let path = match uri.path_and_query().map(PathAndQuery::as_str) {
            None | Some("") => "/",
            Some(path) => path,
        };
        encoder.field(":scheme", scheme.as_bytes());
        encoder.field(":authority", authority.as_str().as_bytes());
        encoder.field(":path", path.as_bytes());
    } else {
        encoder.field(":authority", authority.as_str().as_bytes());
    }
    if let Some(protocol) = protocol {
        encoder.field(":protocol", protocol.as_bytes());
    }
    encode_fields(request.headers(), &mut encoder);
    check_size(encoder.size(), max_bytes)
}

/// Appends the field section of `response`, leaving out fields that belong to a connection.
///
/// # Errors
///
/// [`HeadError::TooLarge`]; what was appended is then of no use.
pub(crate) fn encode_response(
    response: &Response<()>,
    max_bytes: Option<u64>,
    out: &mut impl BufMut,
) -> Result<(), HeadError> {
    let mut encoder = Encoder::new(out);
    encoder.field(":status", response.status().as_str().as_bytes());
    encode_fields(response.headers(), &mut encoder);
    check_size(encoder.size(), max_bytes)
}

/// Appends the field section of `trailers`, leaving out fields that belong to a connection.
///
/// # Errors
///
/// [`HeadError::TooLarge`]; what was appended is then of no use.
pub(crate) fn encode_trailers(
    trailers: &HeaderMap,
    max_bytes: Option<u64>,
    out: &mut impl BufMut,
) -> Result<(), HeadError> {
    let mut encoder = Encoder::new(out);
    encode_fields(trailers, &mut encoder);
    check_size(encoder.size(), max_bytes)
}

fn encode_fields<B: BufMut>(headers: &HeaderMap, encoder: &mut Encoder<'_, B>) {
    for (name, value) in headers {
        let is_te = name == TE && value != "trailers";
        if !is_connection_specific(name) && name != HOST && !is_te {
            encoder.field(name.as_str(), value.as_bytes());
        }
    }
}

fn check_size(size: usize, max_bytes: Option<u64>) -> Result<(), HeadError> {
    let bytes = u64::try_from(size).unwrap_or(u64::MAX);
    match max_bytes {
        Some(max) if bytes > max => Err(HeadError::TooLarge { bytes, max }),
        _ => Ok(()),
    }
}

/// Joins cookies that were sent as several fields. Spec: RFC 9114 §4.2.1.
///
/// HTTP/3 may split them, and whatever handles a request as HTTP/1.1 expects one.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else {
        return;
    };
    let mut joined = [first.as_bytes(), second.as_bytes()].join(&b"; "[..]);
    for cookie in cookies {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qpack;

    fn fields(pairs: &[(&'static str, &'static str)]) -> Vec<Field> {
        let field = |(name, value): &(&'static str, &'static str)| Field {
            name: Bytes::from_static(name.as_bytes()),
            value: Bytes::from_static(value.as_bytes()),
        };
        pairs.iter().map(field).collect()
    }

    const GET: [(&str, &str); 4] = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "a.example:4433"),
        (":path", "/x?y=z"),
    ];

    #[test]
    fn a_request_round_trips() {
        let mut request = Request::builder()
            .method("CONNECT")
            .uri("https://a.example:4433/x?y=z")
            .header("origin", "https://b.example")
            .header("x-two", "1")
            .header("x-two", "2")
            .body(())
            .unwrap();
        request
            .extensions_mut()
            .insert(Protocol::from_static("webtransport"));
        let mut section = Vec::new();
        encode_request(&request, Some(1000), &mut section).unwrap();
        let got = decode_request(qpack::decode(section.into(), 1000).unwrap()).unwrap();
        assert_eq!(got.method(), request.method());
        assert_eq!(got.uri(), request.uri());
        assert_eq!(got.headers(), request.headers());
        assert!(
            got.extensions()
                .get::<Protocol>()
                .unwrap()
                .is_webtransport()
        );
    }

    #[test]
    fn a_response_round_trips_without_connection_fields() {
        let response = Response::builder()
            .status(431)
            .header("connection", "close")
            .header("transfer-encoding", "chunked")
            .header("content-length", "5")
            .body(())
            .unwrap();
        let mut section = Vec::new();
        encode_response(&response, None, &mut section).unwrap();
        let got = decode_response(qpack::decode(section.into(), 1000).unwrap()).unwrap();
        assert_eq!(got.status(), 431);
        assert_eq!(got.headers().len(), 1);
        assert_eq!(content_length(got.headers()), Ok(Some(5)));
    }

    #[test]
    fn host_may_stand_in_for_authority() {
        let request = fields(&[GET[0], GET[1], GET[3], ("host", "a.example:4433")]);
        assert_eq!(
            decode_request(request).unwrap().uri().to_string(),
            "https://a.example:4433/x?y=z"
        );
        let plain = fields(&[(":method", "CONNECT"), (":authority", "a.example:1")]);
        assert_eq!(
            decode_request(plain).unwrap().uri().to_string(),
            "a.example:1"
        );
        let asterisk = fields(&[(":method", "OPTIONS"), GET[1], GET[2], (":path", "*")]);
        assert_eq!(decode_request(asterisk).unwrap().uri().path(), "*");
    }

    #[test]
    fn malformed_requests_are_refused() {
        let [method, scheme, authority, path] = GET;
        let connect = (":method", "CONNECT");
        let protocol = (":protocol", "webtransport");
        let cases: &[(&str, &[(&'static str, &'static str)])] = &[
            ("no method", &[scheme, authority, path]),
            ("no scheme", &[method, authority, path]),
            ("no path", &[method, scheme, authority]),
            ("no authority", &[method, scheme, path]),
            (
                "empty authority",
                &[method, scheme, (":authority", ""), path],
            ),
            ("empty path", &[method, scheme, authority, (":path", "")]),
            (
                "relative path",
                &[method, scheme, authority, (":path", "x")],
            ),
            (
                "asterisk on GET",
                &[method, scheme, authority, (":path", "*")],
            ),
            ("method twice", &[method, method, scheme, authority, path]),
            (
                "unknown pseudo-field",
                &[method, scheme, authority, path, (":x", "")],
            ),
            (
                "status",
                &[method, scheme, authority, path, (":status", "200")],
            ),
            (
                "pseudo-field late",
                &[method, scheme, authority, ("x", "1"), path],
            ),
            ("upper case", &[method, scheme, authority, path, ("X", "1")]),
            ("empty name", &[method, scheme, authority, path, ("", "1")]),
            (
                "name with a space",
                &[method, scheme, authority, path, ("a b", "1")],
            ),
            (
                "value with a line break",
                &[method, scheme, authority, path, ("x", "1\r\n2")],
            ),
            (
                "value with a zero",
                &[method, scheme, authority, path, ("x", "1\0")],
            ),
            (
                "connection",
                &[method, scheme, authority, path, ("connection", "close")],
            ),
            (
                "transfer-encoding",
                &[method, scheme, authority, path, ("transfer-encoding", "x")],
            ),
            (
                "upgrade",
                &[method, scheme, authority, path, ("upgrade", "x")],
            ),
            ("te", &[method, scheme, authority, path, ("te", "gzip")]),
            (
                "host differs",
                &[method, scheme, authority, path, ("host", "b.example")],
            ),
            (
                "user information",
                &[method, scheme, (":authority", "me@a.example"), path],
            ),
            (
                "length is no number",
                &[method, scheme, authority, path, ("content-length", "+1")],
            ),
            (
                "two lengths",
                &[
                    method,
                    scheme,
                    authority,
                    path,
                    ("content-length", "1"),
                    ("content-length", "2"),
                ],
            ),
            (
                "protocol on GET",
                &[method, scheme, authority, path, protocol],
            ),
            ("CONNECT with path", &[connect, scheme, authority, path]),
            ("CONNECT without authority", &[connect]),
            (
                "extended CONNECT without path",
                &[connect, scheme, authority, protocol],
            ),
            (
                "extended CONNECT without scheme",
                &[connect, authority, path, protocol],
            ),
        ];
        for (name, pairs) in cases {
            let fault = decode_request(fields(pairs)).expect_err(name);
            assert_eq!(fault, malformed(fault.detail), "{name}");
        }
        assert!(decode_request(fields(&GET)).is_ok());
    }

    #[test]
    fn malformed_responses_and_trailers_are_refused() {
        let cases: &[&[(&'static str, &'static str)]] = &[
            &[],
            &[(":status", "20")],
            &[(":status", "101")],
            &[(":status", "200"), (":status", "200")],
            &[(":status", "200"), (":path", "/")],
            &[("x", "1"), (":status", "200")],
        ];
        for pairs in cases {
            assert!(decode_response(fields(pairs)).is_err(), "{pairs:?}");
        }
        assert!(decode_trailers(fields(&[(":status", "200")])).is_err());
        assert_eq!(decode_trailers(fields(&[("x", "1")])).unwrap().len(), 1);
    }

    #[test]
    fn a_head_above_the_peers_limit_is_not_sent() {
        let request = Request::get("https://a.example/").body(()).unwrap();
        let mut out = Vec::new();
        let error = encode_request(&request, Some(100), &mut out).unwrap_err();
        assert!(matches!(error, HeadError::TooLarge { max: 100, .. }));
        let relative = Request::get("/").body(()).unwrap();
        let error = encode_request(&relative, None, &mut out).unwrap_err();
        assert_eq!(error, HeadError::NotAbsolute);
    }

    #[test]
    fn split_cookies_are_joined() {
        let mut headers = HeaderMap::new();
        for cookie in ["a=1", "b=2", "c=3"] {
            headers.append(COOKIE, HeaderValue::from_static(cookie));
        }
        join_cookies(&mut headers);
        let got: Vec<_> = headers.get_all(COOKIE).iter().collect();
        assert_eq!(got, ["a=1; b=2; c=3"]);
    }
}
