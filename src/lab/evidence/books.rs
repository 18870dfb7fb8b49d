//! Two books are kept of every run, the client's and the server's. They must agree.

use crate::lab::evidence::columns;
use crate::lab::record::Row;

/// Answers the client read in the whole run.
pub fn read(row: &Row) -> Option<u64> {
    let load = row.load.as_ref()?;
    Some(load.requests + load.outside_window.warmup + load.outside_window.late)
}

/// Connections the server accepted and requests it answered. A program under a master that counts nothing itself has no
/// book, and the master can enter no more than the connections it has passed: what nobody knows is `None`.
pub fn of_server(row: &Row) -> Option<(Option<u64>, Option<u64>)> {
    let has_master = row.server.as_ref()?.cluster.is_some();
    let known = |count: u64| (count > 0 || !has_master).then_some(count);
    let accepted = columns::sum(row, |worker| worker.accepted)?;
    let requests = columns::sum(row, |worker| worker.requests)?;
    Some((known(accepted), known(requests)))
}

/// A client that read nothing.
pub fn silence(row: &Row) -> Option<String> {
    (read(row)? == 0).then(|| "no request was answered".to_string())
}

/// The client's book against the server's. Without time-outs every established connection was accepted, and every
/// answer the client read was one the server counted; with them some connections may never have been accepted.
pub fn imbalance(row: &Row) -> Option<String> {
    let read = read(row)?;
    let book = &row.load.as_ref()?.connections;
    let (accepted, requests) = of_server(row)?;
    let (accepted, requests) = (accepted.unwrap_or(book.established), requests.unwrap_or(read));
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
