//! Deliberately slow clients against a real server.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use acceptlab::load::background::BackgroundConnections;
use acceptlab::load::client::route::Route;
use acceptlab::load::options::background::Background;

use crate::support::{FOREVER, start};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_server_with_an_idle_time_out_rids_itself_of_silent_clients_but_not_of_slow_ones() {
    let server = start("event-driven", &["--idle-timeout", "500ms"]);
    let open = |slow_send, half_open, gap_ms| {
        let gap = Duration::from_millis(gap_ms);
        let wanted = Background { slow_send, half_open, gap, ..Background::default() };
        let route = Route { address: server.addr.into(), sources: None, no_delay: false, reset: false };
        let background = BackgroundConnections::start(route, REQUEST.into(), wanted, FOREVER).unwrap();
        background.wait_until_open(&|| false).unwrap();
        background
    };
    let mut silent = open(4, 7, 60_000);
    // These are never silent for long.
    let mut slow = open(3, 0, 1);
    // The server ends its connections in the order of their silence. The first of ours may be silent before all
    // of them are, the second is not.
    for _ in 0..2 {
        let mut ours = TcpStream::connect(server.addr).unwrap();
        ours.write_all(&REQUEST[..5]).unwrap();
        ours.set_read_timeout(Some(FOREVER)).unwrap();
        ours.read_to_end(&mut Vec::new()).unwrap();
    }
    for (book, (kind, count)) in silent.stop().slow.iter().zip([("send", 4), ("half-open", 7)]) {
        let found = (&*book.kind, book.established, book.answered, book.closed_by_server);
        assert_eq!(found, (kind, count, 0, count));
        assert!(book.closed_after_ms.unwrap() >= 500.0, "{book:?}");
    }
    let book = &slow.stop().slow[0];
    assert!(book.established == 3 && book.answered >= 1 && book.closed_by_server == 0, "{book:?}");
}
