//! Whether the answers that a client has read are those of a server that keeps the contract (CONTRACT.md, section 1). A
//! server that answers wrongly is not measured: its row has failed. The client reads each answer anyway, so this costs
//! the server nothing and changes no count.

use crate::report::LoadReport;

/// What is wrong with the answers, in a line. Where the matrix expects losses, only whole answers of status 200 are
/// judged; a server of another project may not be able to name its workers.
pub fn broken(load: &LoadReport, expects_losses: bool, names_workers: bool) -> Option<String> {
    let connects_only = load.run.as_ref().is_some_and(|run| run.configuration.requests_per_connection == Some(0));
    let answers = load.requests + load.outside_window.warmup + load.outside_window.late;
    let (wrong, refused) = (load.wrong_bodies, load.errors.status.values().sum::<u64>());
    let named: u64 = load.workers.values().map(|share| share.requests).sum();
    let unnamed = load.requests.saturating_sub(named + refused);
    if wrong > 0 {
        return Some(format!(
            "{wrong} of {answers} bodies do not begin `handled by worker I, pid P`, I as in X-Worker"
        ));
    }
    if unnamed > 0 && names_workers && !connects_only {
        return Some(format!("{unnamed} of {} answers have no X-Worker", load.requests));
    }
    if expects_losses {
        return None;
    }
    if let Some((status, count)) = load.errors.status.first_key_value() {
        return Some(format!("{count} of {answers} answers have the status {status}"));
    }
    // An errno and `eof` are a connection that was lost. What else there is came as an answer.
    let is_answer = |cause: &str| cause != "eof" && !cause.starts_with('E');
    if let Some((cause, count)) = load.errors.read.iter().find(|(cause, _)| is_answer(cause)) {
        return Some(format!("{count} answers are no HTTP, or not as long as their Content-Length says ({cause})"));
    }
    (answers == 0).then(|| "no request was answered".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::WorkerShare;

    fn report(spoil: fn(&mut LoadReport)) -> Option<String> {
        let mut load = LoadReport { requests: 100, ..LoadReport::default() };
        load.workers.insert("0".into(), WorkerShare { requests: 100, ..WorkerShare::default() });
        spoil(&mut load);
        broken(&load, false, true)
    }

    #[test]
    fn what_no_server_of_the_contract_answers_is_found() {
        assert_eq!(report(|_| ()), None);
        assert!(report(|load| load.wrong_bodies = 3).unwrap().starts_with("3 of 100 bodies do not begin"));
        assert!(report(|load| load.workers.clear()).unwrap().contains("100 of 100 answers have no X-Worker"));
        assert!(report(|load| _ = load.errors.status.insert("500".into(), 2)).unwrap().contains("status 500"));
        assert!(report(|load| _ = load.errors.read.insert("unasked".into(), 7)).unwrap().starts_with("7 answers"));
        assert_eq!(report(|load| _ = load.errors.read.insert("eof".into(), 7)), None, "a lost request");
        assert!(report(|load| *load = LoadReport::default()).unwrap().contains("no request"));
    }

    #[test]
    fn a_run_of_connections_without_requests_has_no_answers_to_judge() {
        let mut load = LoadReport { requests: 9, run: Some(Default::default()), ..LoadReport::default() };
        load.run.as_mut().unwrap().configuration.requests_per_connection = Some(0);
        assert_eq!(broken(&load, false, true), None);
    }
}
