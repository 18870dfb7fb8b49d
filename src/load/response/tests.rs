use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// What a connection's bytes are: complete answers, and how they end.
#[derive(Debug, PartialEq)]
enum End {
    /// Between two answers.
    Complete,
    /// In the middle of one.
    Partial,
    /// With an answer that ends with the connection.
    Closed(Answer),
    Malformed(&'static str),
}

fn read_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, cached_head: &mut CachedHead) -> (Vec<Answer>, End) {
    let (mut reader, mut answers) = (ResponseReader::default(), Vec::new());
    for mut piece in pieces {
        while !piece.is_empty() {
            match reader.feed(piece, cached_head) {
                Ok(Some((answer, consumed))) => {
                    answers.push(answer);
                    piece = &piece[consumed..];
                }
                Ok(None) => break,
                Err(Malformed(what)) => return (answers, End::Malformed(what)),
            }
        }
    }
    let is_complete = reader.body.is_none() && reader.beginning.is_empty();
    let end = match reader.end() {
        Some(answer) => End::Closed(answer),
        None if is_complete => End::Complete,
        None => End::Partial,
    };
    (answers, end)
}

/// Reads the bytes whole, byte by byte, and after they were seen before; expects the same each time.
fn read_all(bytes: &[u8]) -> (Vec<Answer>, End) {
    let mut cached_head = CachedHead::new(false);
    let whole = read_pieces([bytes], &mut cached_head);
    let text = bytes.escape_ascii();
    assert_eq!(read_pieces([bytes], &mut cached_head), whole, "the first and the second time differ for {text}");
    let byte_by_byte = read_pieces(bytes.chunks(1), &mut CachedHead::new(false));
    assert_eq!(byte_by_byte, whole, "whole and byte by byte differ for {text}");
    whole
}

/// The one answer that these bytes are.
#[track_caller]
fn read(bytes: &str) -> Answer {
    match read_all(bytes.as_bytes()) {
        (answers, End::Complete) if answers.len() == 1 => answers[0],
        (answers, End::Closed(answer)) if answers.is_empty() => answer,
        other => panic!("{bytes:?}: {other:?}"),
    }
}

/// What is wrong with them.
#[track_caller]
fn refused(bytes: impl AsRef<[u8]>) -> &'static str {
    match read_all(bytes.as_ref()) {
        (_, End::Malformed(what)) => what,
        other => panic!("{}: {other:?}", bytes.as_ref().escape_ascii()),
    }
}

/// None of these bodies names a worker.
fn answer(status: u16, worker: Option<u32>, body_bytes: u64, close: bool) -> Answer {
    Answer { status, worker, body_bytes, wrong_body: worker.is_some() && status == 200, close }
}

fn two_bytes_with(fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: 2\r\n\r\nok")
}

fn chunked(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

#[test]
fn an_answer_with_a_length_is_read() {
    let bytes = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Worker: 3\r\n\r\nhello";
    assert_eq!(read(bytes), answer(200, Some(3), 5, false));
}

#[test]
fn header_names_and_tokens_ignore_case() {
    let bytes = "HTTP/1.1 200 OK\r\ncontent-LENGTH: 0\r\nx-worker: 12\r\nCONNECTION: foo, Close\r\n\r\n";
    assert_eq!(read(bytes), answer(200, Some(12), 0, true));
}

#[test]
fn a_server_of_version_1_0_closes_unless_it_says_otherwise() {
    assert_eq!(read("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"), answer(200, None, 0, true));
    let bytes = "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(read(bytes), answer(200, None, 0, false));
}

#[test]
fn chunks_extensions_and_trailers_are_read() {
    let body = "5\r\nhello\r\nA;name=value\r\n0123456789\r\n0\r\nDate: now\r\n\r\n";
    assert_eq!(read(&chunked(body)), answer(200, None, 15, false));
    for (body, bytes) in [
        ("0\r\n\r\n", 0),
        ("000\r\n\r\n", 0),
        ("0000000000000000002\r\nok\r\n0\r\n\r\n", 2),
        ("2  \r\nok\r\n0\r\n\r\n", 2),
        ("2\nok\n0\n\n", 2),
    ] {
        assert_eq!(read(&chunked(body)), answer(200, None, bytes, false), "{body:?}");
    }
    for size in ["xyz\r\n", "\r\n", "0x2\r\n", "2x\r\n", "1234567890abcdef0\r\n"] {
        assert_eq!(refused(chunked(size)), "chunk size", "{size:?}");
    }
    assert_eq!(refused(chunked("5\r\nhelloX")), "chunk end");
}

/// Each of these is a complete answer to curl 7.88 or to the parser of Node 20.
#[test]
fn what_curl_or_node_count_is_counted() {
    let many: String = (0..1500).map(|i| format!("X-{i}: y\r\n")).collect();
    for fields in
        [&many[..many.len() - 2], "Server : x", "X: a\r\n b", "X(y: 1", ": 1", "X: a\u{1}b", "X: \u{e9}", "X:\ta"]
    {
        assert_eq!(read(&two_bytes_with(fields)), answer(200, None, 2, false), "{fields:?}");
    }
    for head in [
        "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 \r\nContent-Length : 2\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\n",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
    ] {
        assert_eq!(read(&format!("{head}ok")), answer(200, None, 2, false), "{head:?}");
    }
}

#[test]
fn the_last_transfer_coding_says_how_an_answer_ends() {
    let with = |fields: &str, body: &str| read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}"));
    let chunks = "2\r\nok\r\n0\r\n\r\n";
    for fields in [
        "Transfer-Encoding: deflate, chunked",
        "Transfer-Encoding: deflate\r\nTransfer-Encoding: chunked",
        "Content-Length: 9\r\nTransfer-Encoding: chunked",
    ] {
        assert_eq!(with(fields, chunks), answer(200, None, 2, false), "{fields:?}");
    }
    for fields in [
        "Transfer-Encoding: chunked, deflate",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: deflate",
        "Transfer-Encoding: gzip\r\nContent-Length: 1",
    ] {
        assert_eq!(with(fields, "ok"), answer(200, None, 2, true), "{fields:?}");
    }
}

#[test]
fn an_answer_without_a_length_ends_with_the_connection() {
    assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nhello"), answer(200, None, 5, true));
}

#[test]
fn a_close_in_the_middle_of_an_answer_is_no_end() {
    for bytes in ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", &chunked("2\r\nok")] {
        assert_eq!(read_all(bytes.as_bytes()), (vec![], End::Partial), "{bytes:?}");
    }
}

#[test]
fn interim_answers_are_skipped() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let bytes = format!("{interim}HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno");
    assert_eq!(read(&bytes), answer(404, None, 2, false));
    let switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(read(switching), answer(101, None, 0, true));
}

#[test]
fn answers_that_never_have_a_body_end_with_their_head() {
    assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n"), answer(204, None, 0, false));
    assert_eq!(read("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"), answer(304, None, 0, false));
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
    let fed = ResponseReader::default().feed(head, &mut CachedHead::new(true));
    assert_eq!(fed, Ok(Some((answer(200, None, 0, false), head.len()))));
}

#[test]
fn more_than_was_promised_is_left_to_the_caller() {
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello";
    let fed = ResponseReader::default().feed(bytes, &mut CachedHead::new(false));
    assert_eq!(fed, Ok(Some((answer(200, None, 2, false), bytes.len() - 3))));
}

#[test]
fn what_is_malformed_is_named() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(head::MAX_BYTES));
    for (bytes, what) in [
        ("SSH-2.0-OpenSSH\r\n", "status line"),
        ("HTTP/2 200 OK\r\n\r\n", "status line"),
        ("HTTP/1.2 200 OK\r\n\r\n", "status line"),
        ("HTTP/1.1 1000 OK\r\n\r\n", "status line"),
        ("HTTP/1.1 200 OK\r\nserver\r\n\r\n", "header name"),
        ("HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", "header value"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n chunked\r\n\r\n", "header value"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "content length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "content length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n", "content length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "content length"),
        (&long, "head too long"),
    ] {
        assert_eq!(refused(bytes), what, "{:?}", &bytes[..bytes.len().min(80)]);
    }
    // Without a line end, too: what speaks TLS never sends one.
    assert_eq!(refused(b"\x15\x03\x01\0\x02"), "status line");
}

#[test]
fn an_absurd_worker_number_counts_as_unnamed() {
    for worker in ["65536", "4294967296", "-1", "", "one"] {
        assert_eq!(read(&two_bytes_with(&format!("X-Worker: {worker}"))), answer(200, None, 2, false));
    }
}

#[test]
fn only_the_number_of_the_worker_may_differ_from_what_is_remembered() {
    let first = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Worker: 3\r\n\r\n";
    let mut cached_head = CachedHead::new(false);
    ResponseReader::default().feed(first.as_bytes(), &mut cached_head).unwrap();
    let known = |bytes: &str| cached_head.whole_answer(bytes.as_bytes());
    for (worker, expected) in [("0", Some(0)), ("17", Some(17)), ("00004", Some(4)), ("65536", None)] {
        let bytes = format!("{}ok", first.replace("3", worker));
        assert_eq!(known(&bytes), Some((answer(200, expected, 2, false), bytes.len())));
    }
    for (from, to) in
        [("200", "201"), (": 2", ": 3"), ("X-", "x-"), ("3", ""), ("3", "3 "), ("3", "000003"), ("3", "-3")]
    {
        assert_eq!(known(&format!("{}ok", first.replace(from, to))), None, "{from:?} → {to:?}");
    }
    assert_eq!(known(&format!("{first}o")), None, "half a body");
    assert_eq!(known(&first.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\nok")), None);
}

#[test]
fn a_body_names_the_worker_of_its_head_or_it_is_wrong() {
    for (body, is_wrong) in [
        ("handled by worker 3, pid 604\n", false),
        ("handled by worker 3, pid 6 and more", false),
        ("handled by worker 4, pid 604\n", true),
        ("handled by worker 3, pid \n", true),
        ("handled by worker 3", true),
        ("hello", true),
        ("", true),
    ] {
        let framed = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(read(&framed("X-Worker: 3\r\n")).wrong_body, is_wrong, "{body:?}");
        assert!(!read(&framed("")).wrong_body, "{body:?}: a server of another kind");
        assert!(!read(&framed("X-Worker: 3\r\n").replace("200 OK", "503 No")).wrong_body, "{body:?}");
    }
    // The contract asks for a length.
    assert!(read("HTTP/1.1 200 OK\r\nX-Worker: 3\r\n\r\nhandled by worker 3, pid 604\n").wrong_body);
}

fn head() -> impl Strategy<Value = String> {
    let status = select(vec!["200 OK", "204 No Content", "100 Continue", "503 No", "200"]);
    let field = select(vec![
        "Content-Length: 2",
        "Content-Length: 12",
        "Content-Length: 26",
        "X-Worker: 3",
        "X-Worker: 4",
        "X-Worker: 12",
        "X-Worker:  8 ",
        "X-Worker: one",
        "Connection: close",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Date: Sat",
        " folded",
    ]);
    (status, prop::collection::vec(field, 0..5)).prop_map(|(status, fields)| {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        format!("HTTP/1.1 {status}\r\n{fields}\r\n")
    })
}

fn body() -> impl Strategy<Value = &'static str> {
    select(vec![
        "",
        "ok",
        "hello, world",
        "handled by worker 3, pid 4",
        "2\r\nok\r\n0\r\n\r\n",
        "000c;x=y\r\nhello, world\r\n0\r\nA: b\r\n\r\n",
    ])
}

fn answers() -> impl Strategy<Value = String> {
    prop::collection::vec((head(), body()), 1..4)
        .prop_map(|answers| answers.iter().map(|(head, body)| format!("{head}{body}")).collect())
}

/// Bytes that take the place of others.
fn changes() -> impl Strategy<Value = Vec<(Index, u8)>> {
    prop::collection::vec((any::<Index>(), select(b"0123 :\r\nxX-\0\xff".to_vec())), 0..3)
}

fn changed(text: String, changes: Vec<(Index, u8)>) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    for (at, byte) in changes {
        let at = at.index(bytes.len());
        bytes[at] = byte;
    }
    bytes
}

proptest! {
    #[test]
    fn the_same_bytes_are_the_same_answers_wherever_the_network_cuts_them(
        text in answers(),
        changes in changes(),
        mut cuts in prop::collection::vec(any::<Index>(), 0..6),
    ) {
        let bytes = changed(text, changes);
        let whole = read_all(&bytes);
        cuts.sort_by_key(|cut| cut.index(bytes.len()));
        let mut rest = (&bytes[..], 0);
        let mut pieces = Vec::new();
        for cut in cuts {
            let at = cut.index(bytes.len());
            let (piece, behind) = rest.0.split_at(at - rest.1);
            pieces.push(piece);
            rest = (behind, at);
        }
        pieces.push(rest.0);
        prop_assert_eq!(read_pieces(pieces, &mut CachedHead::new(false)), whole);
    }

    /// The head that is remembered, and one that differs in a byte, a few bytes or altogether.
    #[test]
    fn a_remembered_head_changes_no_answer(
        remembered in head(),
        other in head(),
        takes_other in any::<bool>(),
        changes in changes(),
        cut in any::<Index>(),
    ) {
        let mut cached_head = CachedHead::new(false);
        let _ = ResponseReader::default().feed(format!("{remembered}hello, world").as_bytes(), &mut cached_head);
        let bytes = changed(if takes_other { other } else { remembered } + "hello, world", changes);
        for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
            let fresh = ResponseReader::default().feed(bytes, &mut CachedHead::new(false));
            prop_assert_eq!(ResponseReader::default().feed(bytes, &mut cached_head), fresh);
        }
    }
}
