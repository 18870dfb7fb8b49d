use serde_json::json;

use super::*;

struct Ends {
    ipc: Ipc,
    theirs: OwnedFd,
}

impl Ends {
    fn new() -> Ends {
        let (ipc, theirs) = Ipc::pair().unwrap();
        Ends { ipc, theirs }
    }

    /// What is received when the other end sends `bytes`.
    fn receive(&mut self, bytes: &[u8], handle: Option<&OwnedFd>) -> Vec<String> {
        assert_eq!(send_with_fd(&self.theirs, bytes, handle.map(AsFd::as_fd)), Ok(bytes.len()));
        let mut incoming = VecDeque::new();
        assert_ne!(self.ipc.receive(&mut [0; BUFFER_BYTES], &mut incoming), Received::End);
        let describe = |incoming| match incoming {
            Incoming::Message(message, None) => message.to_string(),
            Incoming::Message(message, Some(_)) => format!("{message} with a descriptor"),
            Incoming::Answer { ack, accepted } => format!("answer {ack} {accepted}"),
            Incoming::Connection { seq, is_expected, .. } => format!("connection {seq} {is_expected}"),
            Incoming::Large(bytes) => format!("{bytes} bytes"),
            Incoming::Undelivered(tag) => format!("undelivered {tag}"),
            Incoming::Violation(what) => format!("violation: {what}"),
        };
        incoming.into_iter().map(describe).collect()
    }

    /// What the other end can receive, and how many descriptors with it.
    fn sent(&self) -> (String, usize) {
        let (mut all, mut handles, mut buffer) = (Vec::new(), 0, [0; BUFFER_BYTES]);
        while let Ok(length @ 1..) = receive_with_fds(&self.theirs, &mut buffer, |_| handles += 1) {
            all.extend_from_slice(&buffer[..length]);
        }
        (String::from_utf8(all).unwrap(), handles)
    }
}

fn open() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

const ACK: &[u8] = b"{\"cmd\":\"NODE_HANDLE_ACK\"}\n";
const NACK: &[u8] = b"{\"cmd\":\"NODE_HANDLE_NACK\"}\n";
const HANDLE: &[u8] = b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":7}\n";

#[test]
fn lines_are_messages_however_they_are_cut() {
    let mut ends = Ends::new();
    assert_eq!(ends.receive(b"1\n{\"a\":", None), ["1"]);
    assert!(ends.receive(b"\"b", None).is_empty());
    assert_eq!(ends.receive(b"\"}\n\"c\"\n", None), ["{\"a\":\"b\"}", "\"c\""]);
}

#[test]
fn a_line_that_is_not_json_is_reported_and_the_next_is_received() {
    let mut ends = Ends::new();
    for garbage in [&b"\n2\n"[..], b"no\n2\n", b"{\"a\":1\n2\n", b"\"\xff\"\n2\n", b"\0\0\n2\n"] {
        let received = ends.receive(garbage, None);
        assert!(received[0].starts_with("violation: a line "), "{received:?}");
        assert_eq!(received[1], "2");
    }
}

#[test]
fn an_answer_is_one_in_any_order_of_its_fields_and_only_with_all_of_them() {
    let mut ends = Ends::new();
    for (line, received) in [
        (r#"{"cmd":"NODE_CLUSTER","ack":7,"accepted":true,"seq":3}"#, "answer 7 true"),
        (r#"{ "seq": 3, "accepted": false, "ack": 7, "cmd": "NODE_CLUSTER" }"#, "answer 7 false"),
        (r#"{"ack":7,"cmd":"NODE_CLUSTER"}"#, r#"{"ack":7,"cmd":"NODE_CLUSTER"}"#),
        (r#"{"accepted":1,"ack":7,"cmd":"NODE_CLUSTER"}"#, r#"{"accepted":1,"ack":7,"cmd":"NODE_CLUSTER"}"#),
        (r#"{"accepted":true,"ack":7,"cmd":"mine"}"#, r#"{"accepted":true,"ack":7,"cmd":"mine"}"#),
    ] {
        assert_eq!(ends.receive(format!("{line}\n").as_bytes(), None), [received]);
    }
}

#[test]
fn a_message_of_any_size_is_reported_and_beyond_a_bound_not_kept() {
    let mut ends = Ends::new();
    let (piece, mut received) = ([b'x'; BUFFER_BYTES], Vec::new());
    for pieces in [LONGEST_LINE / BUFFER_BYTES + 1, 5 * LONGEST_LINE / BUFFER_BYTES] {
        for _ in 0..pieces {
            received.extend(ends.receive(&piece, None));
            assert!(ends.ipc.line.len() <= LONGEST_LINE);
        }
        received.extend(ends.receive(b"end\n3\n", None));
        assert_eq!(received, [format!("{} bytes", pieces * BUFFER_BYTES + 3), "3".to_owned()]);
        received.clear();
    }
    assert_eq!(ends.sent().0, "");
}

#[test]
fn the_descriptor_of_a_message_too_large_to_keep_is_acknowledged_and_closed() {
    let mut ends = Ends::new();
    assert!(ends.receive(&HANDLE[..HANDLE.len() - 3], Some(&open())).is_empty());
    for _ in 0..=LONGEST_LINE / BUFFER_BYTES {
        assert!(ends.receive(&[b'0'; BUFFER_BYTES], None).is_empty());
    }
    assert_eq!(ends.receive(b"}\n", None).len(), 1);
    assert_eq!(ends.sent().0.as_bytes(), ACK);
    assert!(ends.ipc.handle.is_none());
}

#[test]
fn a_descriptor_arrives_with_its_line_and_is_acknowledged_and_elsewhere_it_is_a_violation() {
    let mut ends = Ends::new();
    assert_eq!(ends.receive(HANDLE, Some(&open())), ["7 with a descriptor"]);
    assert_eq!(ends.sent(), (String::from_utf8_lossy(ACK).into_owned(), 0));
    assert_eq!(ends.receive(b"4\n", Some(&open())), ["4", "violation: a descriptor where none belongs"]);
    assert_eq!(ends.receive(HANDLE, None), ["violation: a message whose descriptor has not arrived"]);
    assert_eq!(ends.sent(), (String::from_utf8_lossy(NACK).into_owned(), 0));
    assert!(ends.receive(&HANDLE[..9], Some(&open())).is_empty());
    assert_eq!(ends.receive(&HANDLE[9..], None), ["7 with a descriptor"]);
    assert_eq!(ends.receive(ACK, None), ["violation: an acknowledgement where nothing was sent"]);
}

#[test]
fn a_connection_is_distinguished_from_other_descriptors_and_answered_in_one_message() {
    let mut ends = Ends::new();
    let passed = |key: &str| {
        let mut master = Ends::new();
        master.ipc.send_connection(&connection_head(key), 5, Arc::new(open()));
        let (line, handles) = master.sent();
        assert_eq!(handles, 1);
        line
    };
    let message = json!({"cmd": "NODE_CLUSTER", "act": "newconn", "key": "a", "seq": 5});
    let whole: Value = serde_json::from_str(&passed("a")).unwrap();
    assert_eq!(whole, json!({"cmd": "NODE_HANDLE", "type": "net.Native", "msg": message}));
    // Who expects none takes it for any other message.
    assert!(ends.receive(passed("a").as_bytes(), Some(&open()))[0].ends_with("with a descriptor"));
    assert_eq!(ends.sent().0.as_bytes(), ACK);
    ends.ipc.expected_key = Some("a\"b".to_owned());
    assert_eq!(ends.receive(passed("a\"b").as_bytes(), Some(&open())), ["connection 5 true"]);
    assert_eq!(ends.receive(passed("other").as_bytes(), Some(&open())), ["connection 5 false"]);
    // Another master may write the same in another order, and with blanks.
    let spelled = r#"{"type":"net.Native", "msg":{"seq":5, "key":"a\"b", "act":"newconn"}, "cmd":"NODE_HANDLE"}"#;
    assert_eq!(ends.receive(format!("{spelled}\n").as_bytes(), Some(&open())), ["connection 5 true"]);
    assert_eq!(ends.sent().0, "");
    ends.ipc.answer_connection(5, true, 9);
    let answer = "{\"cmd\":\"NODE_CLUSTER\",\"ack\":5,\"accepted\":true,\"seq\":9}\n";
    assert_eq!(ends.sent().0, format!("{}{answer}", String::from_utf8_lossy(ACK)));
    // One that did not arrive is asked for again.
    assert_eq!(ends.receive(passed("a").as_bytes(), None).len(), 1);
    assert_eq!(ends.sent().0.as_bytes(), NACK);
}

#[test]
fn a_ping_is_answered_by_the_library_of_the_other_end_and_holds_back_what_follows_it() {
    let mut master = Ends::new();
    master.ipc.ping();
    master.ipc.send(&json!("later"));
    let (line, handles) = master.sent();
    assert!(handles == 0 && !line.contains("later") && master.ipc.awaits_acknowledgement(), "{line}");
    let mut worker = Ends::new();
    worker.receive(line.as_bytes(), None);
    assert_eq!(worker.sent().0.as_bytes(), NACK);
    assert!(master.receive(NACK, None).is_empty());
    assert_eq!(master.sent().0, "\"later\"\n");
    assert!(!master.ipc.awaits_acknowledgement());
}

#[test]
fn behind_a_descriptor_everything_waits_for_its_acknowledgement_but_an_acknowledgement() {
    let mut ends = Ends::new();
    ends.ipc.send_handle(&json!(1), Arc::new(open()), 8);
    ends.ipc.send(&json!("later"));
    let (line, handles) = ends.sent();
    assert!(line.contains("\"msg\":1") && !line.contains("later") && handles == 1, "{line}");
    ends.receive(HANDLE, Some(&open()));
    assert_eq!(ends.sent(), (String::from_utf8_lossy(ACK).into_owned(), 0));
    assert!(ends.receive(NACK, None).is_empty());
    let (line, handles) = ends.sent();
    assert!(line.contains("\"msg\":1") && handles == 1, "{line}");
    assert!(ends.receive(ACK, None).is_empty());
    assert_eq!(ends.sent(), ("\"later\"\n".to_owned(), 0));
}

#[test]
fn an_end_that_owes_an_acknowledgement_is_read_however_much_waits_behind_it() {
    let mut ends = Ends::new();
    ends.ipc.ping();
    ends.ipc.send(&json!("m".repeat(2 * MOST_UNSENT_BYTES)));
    assert_eq!(ends.ipc.interest(), Interest::EPOLLIN);
    ends.sent();
    assert!(ends.receive(NACK, None).is_empty());
    assert!(!ends.ipc.awaits_acknowledgement() && ends.ipc.interest().contains(Interest::EPOLLOUT));
}

#[test]
fn a_descriptor_that_never_arrives_is_given_up_and_named() {
    let mut ends = Ends::new();
    ends.ipc.send_handle(&json!(1), Arc::new(open()), 8);
    for _ in 0..MOST_RETRANSMISSIONS {
        assert_eq!(ends.sent().1, 1);
        assert!(ends.receive(NACK, None).is_empty());
    }
    assert_eq!(ends.receive(NACK, None), ["undelivered 8"]);
    assert!(!ends.ipc.awaits_acknowledgement());
}

#[test]
fn what_nothing_was_sent_of_can_be_recalled() {
    let mut ends = Ends::new();
    for tag in 1..=3 {
        ends.ipc.send_handle(&json!(tag), Arc::new(open()), tag);
    }
    ends.ipc.send(&json!("other"));
    assert_eq!(ends.ipc.recall(), [2, 3]);
    assert_eq!(ends.sent().1, 1);
    ends.receive(ACK, None);
    assert_eq!(ends.sent(), ("\"other\"\n".to_owned(), 0));
    assert_eq!(ends.ipc.unsent_bytes, 0);
}

#[test]
fn an_end_that_reads_nothing_blocks_nothing_and_is_not_read() {
    let mut ends = Ends::new();
    let message = json!("m".repeat(100_000));
    while ends.ipc.interest().contains(Interest::EPOLLIN) {
        ends.ipc.send(&message);
    }
    assert_eq!(ends.ipc.interest(), Interest::EPOLLOUT);
    let mut sent = ends.sent().0.len();
    while !ends.ipc.outbox.is_empty() {
        ends.ipc.flush();
        sent += ends.sent().0.len();
    }
    assert_eq!(sent % 100_003, 0);
    assert_eq!(ends.ipc.interest(), Interest::EPOLLIN);
}

#[test]
fn the_end_is_seen_by_receiving_and_sending_to_it_is_not_a_failure() {
    let mut ends = Ends::new();
    drop(ends.theirs);
    ends.ipc.send(&json!(1));
    assert_eq!(ends.ipc.receive(&mut [0; 16], &mut VecDeque::new()), Received::End);
    assert!(ends.ipc.is_broken);
}
