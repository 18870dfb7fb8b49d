//! What is said on one connection: bytes of requests in, bytes of answers out, and no socket. However a loop moves the
//! bytes, by calls that do not block or by a ring of requests to the kernel, this is the same.

use super::worker::Worker;
use crate::http::{CONTINUE, Next, Persistence, Request, RequestReader, Status};
use crate::scoreboard::Count;
use crate::sys::signal::{has_given_up, is_leaving, is_stopping};
use crate::work::Cost;

/// Answers to pipelined requests are gathered up to here before they are sent.
pub const GATHER_BYTES: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServingState {
    #[default]
    Serving,
    /// A request waits so long; the next one is not looked at before it is answered.
    Waiting(Cost),
    /// The last answer has been given: send it, and close.
    Closing,
    /// A request was refused: send that, then read on for a moment, so that it is seen.
    Refusing,
    Lingering,
}

#[derive(Debug, Default)]
pub struct Conversation {
    state: ServingState,
    reader: RequestReader,
    /// The request that waits.
    waiting: Option<Request>,
}

impl Conversation {
    pub fn state(&self) -> ServingState {
        self.state
    }

    /// Part of a request has been consumed, and the rest of its body is still to come.
    pub fn is_inside_body(&self) -> bool {
        self.reader.is_inside_body()
    }

    /// Answers the whole requests among these bytes, until `output` has [`GATHER_BYTES`] or one changes the state.
    /// Returns how many of the bytes are done with. In any other state than `Serving` it does nothing.
    pub fn answer_requests(&mut self, received: &[u8], worker: &mut Worker, output: &mut Vec<u8>) -> usize {
        let mut at = 0;
        while self.state == ServingState::Serving && output.len() < GATHER_BYTES {
            let (used, next) = self.reader.next(&received[at..]);
            at += used;
            match next {
                Next::More => break,
                Next::MoreAfterContinue => {
                    output.extend_from_slice(CONTINUE);
                    break;
                }
                Next::Bad(status) => self.refuse(status, worker, output),
                Next::Request(request) => {
                    let cost = worker.draw_cost();
                    if (worker.is_free_during)(cost) {
                        (self.state, self.waiting) = (ServingState::Waiting(cost), Some(request));
                    } else {
                        // The others wait as well: this is what `block` and `spin` do to an event loop.
                        cost.spend(has_given_up);
                        self.answer(request, worker, output);
                    }
                }
            }
        }
        at
    }

    /// The request that waited has waited long enough.
    pub fn finish_work(&mut self, worker: &Worker, output: &mut Vec<u8>) {
        if let Some(request) = self.waiting.take() {
            self.state = ServingState::Serving;
            self.answer(request, worker, output);
        }
    }

    /// Half a request and then silence.
    pub fn time_out(&mut self, worker: &Worker, output: &mut Vec<u8>) {
        self.refuse(Status::RequestTimeout, worker, output);
    }

    /// The refusal is sent.
    pub fn linger(&mut self) {
        self.state = ServingState::Lingering;
    }

    fn answer(&mut self, mut request: Request, worker: &Worker, output: &mut Vec<u8>) {
        if is_stopping() || is_leaving() {
            request.persistence = Persistence::Close;
        }
        if request.persistence == Persistence::Close {
            self.state = ServingState::Closing;
        }
        output.extend_from_slice(worker.responses.ok(request));
        worker.count(Count::Requests);
    }

    fn refuse(&mut self, status: Status, worker: &Worker, output: &mut Vec<u8>) {
        self.state = ServingState::Refusing;
        output.extend_from_slice(&worker.responses.refusal(status));
        worker.count(Count::Requests);
    }
}
