//! The last sampled request in each bucket of some histograms.
//!
//! It owns the table; the histograms stay with whoever counts. A core writes to it for a sampled
//! request only, so a lock per histogram is off the path. Its size is fixed by what is declared.

use std::sync::{Arc, Mutex, PoisonError};

use crate::trace::context::TraceContext;
use crate::trace::context::{SpanId, TraceId};

/// Series with exemplars; one declared beyond it works and is not rendered.
pub const SERIES_MAX: usize = 1_024;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// Its trace.
    pub trace_id: TraceId,
    /// Its span.
    pub span_id: SpanId,
    /// What was observed, in the histogram's unit.
    pub value: f64,
    /// When: milliseconds since 1970.
    pub unix_ms: u64,
}

/// All series with exemplars.
#[derive(Debug, Default)]
pub struct Exemplars {
    series: Mutex<Vec<Arc<Series>>>,
}

/// One histogram, or one set of labels of one.
#[derive(Debug)]
pub struct Series {
    name: String,
    labels: Vec<(String, String)>,
    bounds: Vec<f64>,
    /// One for each bound, and one for what lies above them.
    last: Mutex<Vec<Option<Exemplar>>>,
}

impl Exemplars {
    /// The series of the histogram `name` (in full) with these labels and bucket bounds, declared if
    /// it is new. To be kept beside the histogram.
    pub fn declare(&self, name: &str, labels: &[(&str, &str)], bounds: &[f64]) -> Arc<Series> {
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter().find(|series| series.is(name, labels.iter().copied())) {
            return Arc::clone(known);
        }
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let series = Arc::new(Series {
            name: name.to_owned(),
            labels: labels.iter().map(own).collect(),
            bounds: bounds.to_vec(),
            last: Mutex::new(vec![None; bounds.len() + 1]),
        });
        if all.len() < SERIES_MAX {
            all.push(Arc::clone(&series));
        }
        series
    }

    /// The exemplars of a series by bucket; empty where it is not declared.
    pub fn of<'a>(
        &self,
        name: &str,
        labels: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    ) -> Vec<Option<Exemplar>> {
        let all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().find(|series| series.is(name, labels.clone()));
        found.map(|series| series.lock().clone()).unwrap_or_default()
    }
}

impl Series {
    /// Remembers a sampled request. Others must not be: their traces do not exist.
    pub fn note(&self, context: TraceContext, value: f64, unix_ms: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        let TraceContext { trace_id, span_id, .. } = context;
        if let Some(bucket) = self.lock().get_mut(at) {
            *bucket = Some(Exemplar { trace_id, span_id, value, unix_ms });
        }
    }

    /// The labels may come in any order: the registry sorts them.
    fn is<'a>(&self, name: &str, labels: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> bool {
        self.name == name
            && labels.clone().count() == self.labels.len()
            && self.labels.iter().all(|(n, v)| labels.clone().any(|l| l == (n, v)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<Exemplar>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(trace: u128) -> TraceContext {
        TraceContext { trace_id: TraceId::new(trace), span_id: SpanId::new(7), sampled: true }
    }

    #[test]
    fn a_value_falls_in_the_histograms_own_bucket() {
        let exemplars = Exemplars::default();
        let series = exemplars.declare("h", &[], &[0.1, 1.0]);
        for (trace, value) in [(1, 0.05), (2, 0.1), (3, 0.100_001), (4, 1.0), (5, 70.0)] {
            series.note(context(trace), value, 0);
        }
        let last: Vec<_> =
            exemplars.of("h", std::iter::empty()).iter().map(|e| e.unwrap().value).collect();
        assert_eq!(last, [0.1, 1.0, 70.0]);
    }

    #[test]
    fn a_series_is_its_name_and_its_labels() {
        let exemplars = Exemplars::default();
        let a = exemplars.declare("h", &[("model", "a"), ("role", "x")], &[1.0]);
        let b = exemplars.declare("h", &[("model", "b"), ("role", "x")], &[1.0]);
        let again = exemplars.declare("h", &[("role", "x"), ("model", "a")], &[1.0]);
        assert!(Arc::ptr_eq(&a, &again) && !Arc::ptr_eq(&a, &b));
        a.note(context(1), 0.5, 0);
        let of = |model| exemplars.of("h", [("role", "x"), ("model", model)].into_iter());
        assert!(of("a")[0].is_some());
        assert!(of("b")[0].is_none());
        assert!(of("c").is_empty());
        assert!(exemplars.of("h", [("model", "a")].into_iter()).is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let exemplars = Exemplars::default();
        for n in 0..SERIES_MAX + 10 {
            exemplars.declare(&n.to_string(), &[], &[]).note(context(1), 1.0, 0);
        }
        assert_eq!(exemplars.series.lock().unwrap().len(), SERIES_MAX);
        assert!(exemplars.of(&SERIES_MAX.to_string(), std::iter::empty()).is_empty());
    }
}
