//! Datagrams that go to the kernel in one send: as many of one size to one place as UDP takes.
//!
//! Pure. quinn hands over ten at a time; of 1,472 bytes that is a quarter of what one send may carry,
//! and the price of a send is the same.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// Most bytes of one send: an IP packet's 65,535 without the headers of IPv6 and UDP.
pub(super) const SEND_BYTES_MAX: usize = 65_535 - 40 - 8;
/// Most datagrams of one send: `UDP_MAX_SEGMENTS` of the kernels before 6.9.
const DATAGRAMS_MAX: usize = 64;

/// What all datagrams of one send have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    datagram_bytes: usize,
}

/// Datagrams of one size, the last one perhaps shorter.
#[derive(Debug, Default)]
pub(super) struct Burst {
    head: Option<Head>,
    contents: Vec<u8>,
}

impl Burst {
    pub(super) fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }

    /// Takes datagrams from `rest`, what is left of `transmit`, as long as they fit. Says how many bytes that
    /// are; none: this one is to be sent first.
    pub(super) fn put(&mut self, transmit: &Transmit<'_>, rest: &[u8]) -> usize {
        let head = Head {
            destination: transmit.destination,
            ecn: transmit.ecn,
            src_ip: transmit.src_ip,
            datagram_bytes: transmit.segment_size.unwrap_or(transmit.contents.len()).max(1),
        };
        if self.is_empty() {
            self.head = Some(head);
        }
        let has_ended = !self.contents.len().is_multiple_of(head.datagram_bytes);
        if self.head != Some(head) || has_ended {
            return 0;
        }
        let room = self.datagrams_max().saturating_sub(self.contents.len() / head.datagram_bytes);
        let taken = rest.len().min(room * head.datagram_bytes);
        self.contents.extend_from_slice(&rest[..taken]);
        taken
    }

    /// Whether no other datagram fits.
    pub(super) fn is_full(&self) -> bool {
        let Some(head) = self.head else { return false };
        let has_ended = !self.contents.len().is_multiple_of(head.datagram_bytes);
        has_ended || self.contents.len() / head.datagram_bytes >= self.datagrams_max()
    }

    fn datagrams_max(&self) -> usize {
        let bytes = self.head.map_or(1, |head| head.datagram_bytes);
        (SEND_BYTES_MAX / bytes).clamp(1, DATAGRAMS_MAX)
    }

    /// As quinn's socket takes it; none if nothing is in it.
    pub(super) fn transmit(&self) -> Option<Transmit<'_>> {
        let head = self.head.filter(|_| !self.is_empty())?;
        Some(Transmit {
            destination: head.destination,
            ecn: head.ecn,
            contents: &self.contents,
            segment_size: (self.contents.len() > head.datagram_bytes)
                .then_some(head.datagram_bytes),
            src_ip: head.src_ip,
        })
    }

    /// It was sent, or is given up.
    pub(super) fn clear(&mut self) {
        self.contents.clear();
        self.head = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn datagrams_leave_as_they_came_in_sends_that_fit(
            transmits in proptest::collection::vec((0u16..2, 0usize..3, 1usize..12, 1usize..1_200), 1..60),
        ) {
            let mut burst = Burst::default();
            let (mut given, mut sent): (Vec<(u16, Vec<u8>)>, _) = (Vec::new(), Vec::new());
            let mut send = |burst: &mut Burst| {
                if let Some(transmit) = burst.transmit() {
                    assert!(transmit.contents.len() <= SEND_BYTES_MAX);
                    let bytes = transmit.segment_size.unwrap_or(transmit.contents.len());
                    assert!(transmit.contents.len().div_ceil(bytes) <= DATAGRAMS_MAX);
                    let datagrams = transmit.contents.chunks(bytes);
                    sent.extend(datagrams.map(|one| (transmit.destination.port(), one.to_vec())));
                }
                burst.clear();
            };
            for (number, (port, size, count, last)) in transmits.into_iter().enumerate() {
                let size = [1_200, 1_472, 8_952][size];
                let contents: Vec<u8> =
                    (0..size * (count - 1) + last).map(|at| (at / 97 + number) as u8).collect();
                given.extend(contents.chunks(size).map(|one| (port, one.to_vec())));
                let transmit = Transmit {
                    destination: SocketAddr::from(([127, 0, 0, 1], port)),
                    ecn: None,
                    contents: &contents,
                    segment_size: (contents.len() > size).then_some(size),
                    src_ip: None,
                };
                let mut rest = &contents[..];
                while !rest.is_empty() {
                    let taken = burst.put(&transmit, rest);
                    rest = &rest[taken..];
                    if !rest.is_empty() {
                        prop_assert!(!burst.is_empty(), "an empty one takes something");
                        send(&mut burst);
                    }
                }
                if burst.is_full() {
                    send(&mut burst);
                }
            }
            send(&mut burst);
            prop_assert_eq!(sent, given);
        }
    }
}
