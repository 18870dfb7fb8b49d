//! What queueing theory says about requests that arrive by chance (Poisson) and all need the same time: M/D/c.

/// One queue before workers that are all alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Queue {
    pub arrivals_per_s: f64,
    pub workers: f64,
    /// The work of one request, in seconds.
    pub work_s: f64,
}

impl Queue {
    /// The mean response time; `None` when the work is more than the workers can do.
    ///
    /// Half of the wait in M/M/c (Erlang's C formula), with Cosmetatos' correction (Operational Research Quarterly 26,
    /// 1975); with one worker this is exact (Pollaczek and Khinchin).
    pub fn mean_s(&self) -> Option<f64> {
        let Queue { arrivals_per_s, workers, work_s } = *self;
        let load = arrivals_per_s * work_s / workers;
        if !(load > 0.0 && load < 1.0) {
            return None;
        }
        let exponential = self.erlang_c() * work_s / (workers * (1.0 - load));
        let correction =
            (1.0 - load) * (workers - 1.0) * ((4.0 + 5.0 * workers).sqrt() - 2.0) / (16.0 * load * workers);
        Some(work_s + 0.5 * exponential * (1.0 + correction))
    }

    /// The 99th percentile of the response time.
    ///
    /// Served in order, each worker's customers arrive with Erlang-c gaps, so the tail of the wait falls as exp(−θt)
    /// with e^(θD) = (1 + θ/λ)^c (Tijms, A First Course in Stochastic Models, ch. 9); its height is chosen so that the
    /// mean is that of [`Queue::mean_s`].
    pub fn p99_s(&self) -> Option<f64> {
        let wait_s = self.mean_s()? - self.work_s;
        let decay = self.decay_per_s();
        let waits = wait_s * decay;
        Some(self.work_s + (waits / 0.01).ln().max(0.0) / decay)
    }

    /// The probability that a request waits in M/M/c.
    fn erlang_c(&self) -> f64 {
        let offered = self.arrivals_per_s * self.work_s;
        // Erlang's B by its recursion, which stays small where powers and factorials do not.
        let blocked = (1..=self.workers as u32).fold(1.0, |b, n| offered * b / (f64::from(n) + offered * b));
        blocked / (1.0 - offered / self.workers * (1.0 - blocked))
    }

    /// θ by bisection: the equation's left side is smaller up to it, and larger behind it.
    fn decay_per_s(&self) -> f64 {
        let excess = |rate: f64| rate * self.work_s - self.workers * (rate / self.arrivals_per_s).ln_1p();
        let mut high = 1.0 / self.work_s;
        while excess(high) < 0.0 {
            high *= 2.0;
        }
        let mut low = 0.0;
        for _ in 0..100 {
            let middle = (low + high) / 2.0;
            if excess(middle) < 0.0 { low = middle } else { high = middle }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and 99th percentile of a queue that is simulated.
    fn simulated(queue: Queue) -> [f64; 2] {
        let mut random = fastrand::Rng::with_seed(1);
        let mut free_at = vec![0.0f64; queue.workers as usize];
        let mut now = 0.0;
        let mut times: Vec<f64> = (0..400_000)
            .map(|_| {
                now -= (1.0 - random.f64()).ln() / queue.arrivals_per_s;
                let first = free_at.iter_mut().min_by(|a, b| a.total_cmp(b)).unwrap();
                *first = first.max(now) + queue.work_s;
                *first - now
            })
            .collect();
        times.sort_by(f64::total_cmp);
        [times.iter().sum::<f64>() / times.len() as f64, times[times.len() * 99 / 100]]
    }

    #[test]
    fn theory_agrees_with_a_simulation() {
        for (workers, load) in [(1.0, 0.5), (1.0, 0.9), (12.0, 0.75), (12.0, 0.95)] {
            let queue = Queue { arrivals_per_s: load * workers / 0.001823, workers, work_s: 0.001823 };
            let [mean, p99] = simulated(queue);
            // A simulation of 400,000 requests at 95 % load is itself some per cent off.
            for (theory, seen) in [(queue.mean_s().unwrap(), mean), (queue.p99_s().unwrap(), p99)] {
                assert!((theory / seen - 1.0).abs() < 0.12, "{queue:?}: {theory} by theory, {seen} simulated");
            }
        }
    }

    #[test]
    fn a_queue_that_grows_without_end_has_no_mean() {
        assert_eq!(Queue { arrivals_per_s: 10.0, workers: 1.0, work_s: 0.1 }.mean_s(), None);
    }
}
