//! What one layer computed and the next needs again.

use std::cell::RefCell;
use std::collections::VecDeque;

use sppo_model::Result;

/// A model may have two sets of rotation angles, or of windows.
const KEPT: usize = 2;

/// The latest few values, found by the rows and the setting that they were made for.
pub(crate) struct Recent<Row, Setting, V>(RefCell<VecDeque<(Vec<Row>, Setting, V)>>);

impl<Row, Setting, V> Default for Recent<Row, Setting, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<Row: Clone + PartialEq, Setting: Clone + PartialEq, V: Clone> Recent<Row, Setting, V> {
    /// The value for these rows and this setting, or what `make` makes.
    pub(crate) fn find_or_make(
        &self,
        rows: &[Row],
        setting: &Setting,
        make: impl FnOnce() -> Result<V>,
    ) -> Result<V> {
        let mut kept = self.0.borrow_mut();
        let found = kept.iter().find(|(of_rows, of, _)| of_rows == rows && of == setting);
        if let Some((_, _, value)) = found {
            return Ok(value.clone());
        }
        let value = make()?;
        kept.truncate(KEPT - 1);
        kept.push_front((rows.to_vec(), setting.clone(), value.clone()));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_value_goes_first() {
        let recent = Recent::default();
        let is_made = |setting: u32| {
            let mut is_made = false;
            let value = recent.find_or_make(&[7, 8], &setting, || {
                is_made = true;
                Ok(10 * setting)
            });
            assert_eq!(value.unwrap(), 10 * setting);
            is_made
        };
        let expected = [true, true, false, false, true, false, true];
        assert_eq!([1, 2, 1, 2, 3, 2, 1].map(is_made), expected);
    }
}
