//! The patterns of SCAN's MATCH: `*`, `?`, `[a-c]`, `[^x]` and `\` before a byte meant as it is.

/// Whether `text` fits `pattern`. Takes at most the product of both lengths of steps.
pub fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut rest, mut at) = (pattern, text);
    // Where to go on when what follows the last star does not fit: one byte further.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', after @ ..] = rest {
            star = Some((after, at));
            rest = after;
            continue;
        }
        let fit = match at.split_first() {
            None if rest.is_empty() => return true,
            None => None,
            Some((byte, left)) => one(rest, *byte).map(|after| (after, left)),
        };
        (rest, at) = match (fit, star) {
            (Some(next), _) => next,
            (None, Some((after, [_, left @ ..]))) => {
                star = Some((after, left));
                (after, left)
            }
            (None, _) => return false,
        };
    }
}

/// The pattern after what fits `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', after @ ..] => Some(after),
        [b'[', after @ ..] => set(after, byte),
        [b'\\', meant, after @ ..] => (*meant == byte).then_some(after),
        [meant, after @ ..] => (*meant == byte).then_some(after),
        [] => None,
    }
}

/// A set up to its `]`, or to the end of the pattern as in redis.
fn set(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (is_inverse, mut rest) = match pattern {
        [b'^', after @ ..] => (true, after),
        _ => (false, pattern),
    };
    let mut is_in = false;
    loop {
        rest = match rest {
            [] | [b']', ..] => break,
            [b'\\', meant, after @ ..] => {
                is_in |= *meant == byte;
                after
            }
            [from, b'-', to, after @ ..] => {
                is_in |= (*from.min(to)..=*from.max(to)).contains(&byte);
                after
            }
            [meant, after @ ..] => {
                is_in |= *meant == byte;
                after
            }
        };
    }
    (is_in != is_inverse).then(|| rest.get(1..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, by recursion.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([b'*', rest @ ..], _) => (0..=text.len()).any(|skip| naive(rest, &text[skip..])),
            ([], []) => true,
            (_, [byte, left @ ..]) => one(pattern, *byte).is_some_and(|rest| naive(rest, left)),
            _ => false,
        }
    }

    #[test]
    fn patterns_fit_as_in_redis() {
        let cases = [
            ("*", "", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("*metadata", "model@1@0@abmetadata", true),
            ("a*b*c", "aXbXbXc", true),
            ("[", "[", false),
        ];
        for (pattern, text, fit) in cases {
            assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), fit, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn any_pattern_is_matched_as_its_definition_says(pattern in "[ab*?\\[\\]^\\\\-]{0,8}", text in "[ab*]{0,8}") {
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(fits(pattern, text), naive(pattern, text));
        }
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        assert!(!fits(&b"*a".repeat(500), &[b'b'; 1000]));
    }
}
