//! Selectors in classic BPF, attached to a group of ours. The programs are in [`crate::classic_bpf`].

use nix::errno::Errno;

use super::super::listener::Listener;
pub use crate::classic_bpf::{BpfProgram, MAX_MEMBERS, by_cpu, random};
use crate::failure::Failure;
use crate::sys::bpf::attach_classic;

/// Lets `program` choose among the listeners of a group, of which `member` is one.
///
/// # Errors
/// Where the kernel is older than 4.6, which has no such programs for TCP, or allows no memory for one.
pub fn attach(member: &Listener, program: &BpfProgram) -> Result<(), Failure> {
    attach_classic(member, program).map_err(|errno| {
        let tried = format_args!("attach a classic BPF program to {}", member.address());
        Failure::new(tried, errno).advise(match errno {
            Errno::ENOMEM => "raise net.core.optmem_max",
            _ => "it needs Linux 4.6",
        })
    })
}
