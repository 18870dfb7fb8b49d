//! Client and server count independently of each other. Their numbers must agree.

use crate::lab::record::Row;

/// Answers the client read in the whole run.
pub fn answers_read(row: &Row) -> Option<u64> {
    let load = row.load.as_ref()?;
    Some(load.requests + load.outside_window.warmup + load.outside_window.late)
}

/// Connections the server accepted and requests it answered. A program under a master may count nothing itself, and the
/// master knows only the connections it has passed: an unknown number is `None`.
pub fn counted_by_server(row: &Row) -> Option<(Option<u64>, Option<u64>)> {
    let has_master = row.server.as_ref()?.cluster.is_some();
    let known = |count: u64| (count > 0 || !has_master).then_some(count);
    let accepted = row.workers_total(|worker| worker.accepted)?;
    let requests = row.workers_total(|worker| worker.requests)?;
    Some((known(accepted), known(requests)))
}

/// The first thing that is wrong with a row, as a test sees it: a failure, an error, or numbers that disagree.
pub fn first_error(row: &Row) -> Option<String> {
    if row.expects_losses() {
        return row.failure.clone().or_else(|| no_answer(row));
    }
    let error = || unexpected_errors(row).first().map(|(what, count)| format!("{what}: {count}"));
    row.failure.clone().or_else(error).or_else(|| mismatch(row))
}

fn no_answer(row: &Row) -> Option<String> {
    (answers_read(row)? == 0).then(|| "no request was answered".to_string())
}

/// Where the client's numbers and the server's disagree. Without time-outs the server accepted every established
/// connection and counted every answer the client read; with time-outs some connections may never have been accepted.
pub fn mismatch(row: &Row) -> Option<String> {
    let read = answers_read(row)?;
    let client = &row.load.as_ref()?.connections;
    let (accepted, requests) = counted_by_server(row)?;
    let (accepted, requests) = (accepted.unwrap_or(client.established), requests.unwrap_or(read));
    if let Some(no_answer) = no_answer(row) {
        return Some(no_answer);
    }
    let (answered, established) = (client.answered, client.established);
    if row.expect_timeouts {
        let is_plausible = answered <= accepted && accepted <= established && read <= requests;
        let bounds = format!("answered {answered} ≤ accepted {accepted} ≤ established {established}");
        return (!is_plausible)
            .then(|| format!("{bounds}, or {read} answers read ≤ {requests} counted, does not hold"));
    }
    if accepted != established {
        return Some(format!("the client established {established} connections, the server accepted {accepted}"));
    }
    (read != requests).then(|| format!("the client read {read} answers, the server counted {requests}"))
}

/// Errors the matrix did not announce: phase and name, count.
pub fn unexpected_errors(row: &Row) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    if let Some(report) = &row.load {
        let errors = &report.errors;
        for (phase, names) in
            [("connect", &errors.connect), ("write", &errors.write), ("read", &errors.read), ("status", &errors.status)]
        {
            found.extend(names.iter().map(|(name, count)| (format!("{phase} {name}"), *count)));
        }
        if errors.timeout > 0 && !row.expect_timeouts {
            found.push(("requests without an answer".to_string(), errors.timeout));
        }
    }
    if let Some(foreign) = &row.foreign {
        let client = row.client_command.program();
        let counts = [("errors", foreign.errors), ("time-outs", foreign.timeouts)];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        found.extend(counts.map(|(what, count)| (format!("{what} by {client}"), count)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::columns::tests::row;
    use crate::report::ClusterReport;

    #[test]
    fn a_row_whose_numbers_agree_passes() {
        assert_eq!(first_error(&row()), None);
    }

    #[test]
    fn a_lost_connection_a_lost_answer_and_no_answer_at_all_are_found() {
        let mut lost = row();
        lost.load.as_mut().unwrap().connections.established = 101;
        assert!(first_error(&lost).unwrap().contains("established 101"));
        let mut unread = row();
        unread.load.as_mut().unwrap().outside_window.late = 5;
        assert!(first_error(&unread).unwrap().contains("read 101"));
        let mut silent = row();
        let load = silent.load.as_mut().unwrap();
        (load.requests, load.outside_window) = (0, Default::default());
        assert!(first_error(&silent).unwrap().contains("no request"));
    }

    #[test]
    fn a_program_that_counts_nothing_is_accepted_only_under_a_master() {
        let mut row = row();
        let server = row.server.as_mut().unwrap();
        server.workers.iter_mut().for_each(|worker| worker.requests = 0);
        assert!(first_error(&row).unwrap().contains("read 100"));
        row.server.as_mut().unwrap().cluster = Some(ClusterReport::default());
        assert_eq!(first_error(&row), None);
        // The master knows what it has passed.
        row.server.as_mut().unwrap().workers[0].accepted += 1;
        assert!(first_error(&row).unwrap().contains("accepted 101"));
    }

    #[test]
    fn what_the_clients_lose_where_workers_die_is_no_first_error() {
        let mut row = row();
        row.load.as_mut().unwrap().errors.timeout = 3;
        assert!(first_error(&row).is_some());
        row.expect_death = true;
        assert_eq!(first_error(&row), None);
    }

    #[test]
    fn time_outs_are_allowed_only_where_the_matrix_announces_them() {
        let mut row = row();
        let load = row.load.as_mut().unwrap();
        load.errors.timeout = 63;
        load.connections.established = 163;
        assert!(first_error(&row).unwrap().contains("without an answer: 63"));
        row.expect_timeouts = true;
        assert_eq!(first_error(&row), None);
    }
}
