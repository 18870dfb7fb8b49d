//! Two books are kept of every run, the client's and the server's. They must agree.

use crate::lab::columns;
use crate::lab::record::Row;

/// A client that read nothing.
pub fn silence(row: &Row) -> Option<String> {
    let load = row.load.as_ref()?;
    let read = load.requests + load.outside_window.warmup + load.outside_window.late;
    (read == 0).then(|| "no request was answered".to_string())
}

/// The client's book against the server's. Without time-outs every established connection was accepted, and every
/// answer the client read was one the server counted; with them some connections may never have been accepted.
pub fn imbalance(row: &Row) -> Option<String> {
    let load = row.load.as_ref()?;
    let accepted = columns::sum(row, |worker| worker.accepted)?;
    let requests = columns::sum(row, |worker| worker.requests)?;
    let read = load.requests + load.outside_window.warmup + load.outside_window.late;
    let book = &load.connections;
    if let Some(silence) = silence(row) {
        return Some(silence);
    }
    if row.expect_timeouts {
        let plausible = book.answered <= accepted && accepted <= book.established && read <= requests;
        let (answered, established) = (book.answered, book.established);
        let bounds = format!("answered {answered} ≤ accepted {accepted} ≤ established {established}");
        return (!plausible)
            .then(|| format!("{bounds}, or {read} answers read ≤ {requests} counted, is broken"));
    }
    if accepted != book.established {
        return Some(format!(
            "the client established {} connections, the server accepted {accepted}",
            book.established
        ));
    }
    (read != requests).then(|| format!("the client read {read} answers, the server counted {requests}"))
}
