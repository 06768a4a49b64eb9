//! The leases of one connection, by number. Pure: it owns them, and drops them with itself.
//!
//! A number is never given twice in a connection's life, so a lease that is released twice is nobody
//! else's.

/// A bounded table of whatever is leased.
#[derive(Debug)]
pub struct Leases<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    held: usize,
    max: usize,
}

#[derive(Debug)]
struct Entry<T> {
    /// Raised when the entry is freed. One that would wrap is not used again.
    generation: u32,
    held: Option<T>,
}

impl<T> Leases<T> {
    /// A table for at most `max` leases.
    pub fn new(max: usize) -> Leases<T> {
        Leases { entries: Vec::new(), free: Vec::new(), held: 0, max }
    }

    /// Keeps `lease` and gives its number, or gives it back when the table is full.
    ///
    /// # Errors
    /// `lease`.
    pub fn insert(&mut self, lease: T) -> Result<u64, T> {
        if self.held >= self.max {
            return Err(lease);
        }
        let at = match self.free.pop() {
            Some(at) => at,
            None => match u32::try_from(self.entries.len()) {
                Ok(at) => {
                    self.entries.push(Entry { generation: 1, held: None });
                    at
                }
                Err(_) => return Err(lease),
            },
        };
        // `at` is of `free` or was pushed just now.
        let entry = &mut self.entries[at as usize];
        entry.held = Some(lease);
        self.held += 1;
        Ok(u64::from(entry.generation) << 32 | u64::from(at))
    }

    /// Takes lease `number` out; none if it is not held.
    pub fn take(&mut self, number: u64) -> Option<T> {
        let at = number as u32;
        let entry = self.entries.get_mut(at as usize)?;
        if u64::from(entry.generation) != number >> 32 {
            return None;
        }
        let lease = entry.held.take()?;
        self.held -= 1;
        if let Some(next) = entry.generation.checked_add(1) {
            entry.generation = next;
            self.free.push(at);
        }
        Some(lease)
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_names_one_lease_for_ever(
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..300),
            max in 1usize..20,
        ) {
            let mut table = Leases::new(max);
            let mut held: BTreeMap<u64, usize> = BTreeMap::new();
            let mut all = Vec::new();
            for (lease, (inserts, which)) in steps.into_iter().enumerate() {
                if inserts {
                    match table.insert(lease) {
                        Ok(number) => {
                            prop_assert!(!all.contains(&number));
                            all.push(number);
                            held.insert(number, lease);
                        }
                        Err(back) => {
                            prop_assert_eq!(back, lease);
                            prop_assert_eq!(held.len(), max);
                        }
                    }
                } else if !all.is_empty() {
                    let number = all[which.index(all.len())];
                    prop_assert_eq!(table.take(number), held.remove(&number));
                }
                prop_assert_eq!(table.len(), held.len());
            }
        }

        #[test]
        fn numbers_from_outside_take_nothing(number: u64) {
            let mut table = Leases::new(4);
            let own = table.insert(7).unwrap();
            prop_assert_eq!(table.take(number).is_some(), number == own);
        }
    }
}
