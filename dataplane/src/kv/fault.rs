//! Why the daemon did not do something, by numbers that stay the same over versions. What the C ABI
//! returns are these numbers too, negated.

/// One reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[repr(u8)]
pub enum Fault {
    /// All memory is leased or pinned, or a queue is full.
    #[error("the daemon has no memory free that it may take; release leases, unpin, or try again")]
    Busy = 1,
    /// Longer than a block may be.
    #[error("the block is longer than the daemon takes; see kv.block_mib_max")]
    TooLarge = 2,
    /// The namespace has used what it may.
    #[error("the namespace has used its quota")]
    QuotaExceeded = 3,
    /// The block named as parent is not there.
    #[error("the parent of the block is not in the store; put it first")]
    ParentMissing = 4,
    /// The bytes are not what was stored; they were thrown away.
    #[error("the block was damaged and is gone; compute it again")]
    Corrupt = 5,
    /// The daemon is about to end.
    #[error("the daemon is draining and takes nothing new")]
    Draining = 6,
    /// The disk tier failed.
    #[error("the disk tier failed; the daemon's log says how")]
    Disk = 7,
    /// There are as many namespaces as there may be.
    #[error("there are too many namespaces; see kv.namespaces_max")]
    TooManyNamespaces = 8,
    /// The connection holds as many leases as it may.
    #[error("the connection holds too many leases; release some")]
    TooManyLeases = 9,
    /// Offset and length do not lie in the staging memory.
    #[error("the bytes named do not lie in the staging memory")]
    OutsideStaging = 10,
    /// Nothing was staged: the Hello came without a memfd.
    #[error("the connection has no staging memory; ask for some at connect")]
    NoStaging = 11,
    /// For the daemon's own user or root.
    #[error("only the daemon's own user or root may do that")]
    NotAllowed = 12,
    /// The frame could not be understood.
    #[error("the daemon did not understand the request")]
    BadRequest = 13,
    /// The other side speaks another version.
    #[error("client and daemon are not of the same version")]
    Version = 14,
    /// There are as many connections as there may be.
    #[error("the daemon has too many clients; see kv.clients_max")]
    TooManyClients = 15,
    /// The memfd passed is not one that cannot shrink, or not as long as said.
    #[error("the staging memory is not a memfd sealed against shrinking, of the length said")]
    BadStaging = 16,
    /// No peer answered, or not in time.
    #[error("no peer answered in time")]
    Peers = 17,
    /// The daemon failed in a way that is its own fault.
    #[error("the daemon failed; its log says how")]
    Internal = 18,
    /// A durable put, and the daemon has no disk.
    #[error("the daemon has no disk tier, so nothing can be durable; see kv.ssd_dir")]
    NoDisk = 19,
}

impl Fault {
    /// All of them, in the order of their numbers, from 1 on.
    pub const ALL: [Fault; 19] = [
        Fault::Busy,
        Fault::TooLarge,
        Fault::QuotaExceeded,
        Fault::ParentMissing,
        Fault::Corrupt,
        Fault::Draining,
        Fault::Disk,
        Fault::TooManyNamespaces,
        Fault::TooManyLeases,
        Fault::OutsideStaging,
        Fault::NoStaging,
        Fault::NotAllowed,
        Fault::BadRequest,
        Fault::Version,
        Fault::TooManyClients,
        Fault::BadStaging,
        Fault::Peers,
        Fault::Internal,
        Fault::NoDisk,
    ];

    /// Its number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// By its number on the wire.
    pub fn from_number(number: u8) -> Option<Fault> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Whether the same request may succeed later.
    pub fn is_passing(self) -> bool {
        matches!(self, Fault::Busy | Fault::TooManyLeases | Fault::TooManyClients | Fault::Peers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_name_the_faults_they_are_of() {
        for (at, fault) in Fault::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(fault.number()), at + 1);
            assert_eq!(Fault::from_number(fault.number()), Some(fault));
        }
        assert_eq!(Fault::from_number(0), None);
        assert_eq!(Fault::from_number(20), None);
    }
}
