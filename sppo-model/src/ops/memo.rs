//! Plans and tables that one layer computes and the next needs again.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Two: layers of one model may alternate between two windows, or two sets of rotary frequencies.
const KEPT: usize = 2;

/// The latest values that were computed, found by the rows and the setting that they belong to.
pub struct Memo<Row, Setting, T>(RefCell<VecDeque<Entry<Row, Setting, T>>>);

struct Entry<Row, Setting, T> {
    rows: Vec<Row>,
    setting: Setting,
    value: Rc<T>,
}

impl<Row, Setting, T> Default for Memo<Row, Setting, T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<Row: Clone + PartialEq, Setting: Clone + PartialEq, T> Memo<Row, Setting, T> {
    /// The value for these rows and this setting; computed with `make` unless it is still here.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get_or_insert_with<E>(
        &self,
        rows: &[Row],
        setting: &Setting,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Rc<T>, E> {
        let mut entries = self.0.borrow_mut();
        let found = entries.iter().find(|entry| entry.rows == rows && entry.setting == *setting);
        if let Some(entry) = found {
            return Ok(Rc::clone(&entry.value));
        }
        // Before `make`, so that its memory can be that of the value that goes.
        entries.truncate(KEPT - 1);
        let value = Rc::new(make()?);
        entries.push_front(Entry {
            rows: rows.to_vec(),
            setting: setting.clone(),
            value: Rc::clone(&value),
        });
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_value_goes_first() {
        let memo = Memo::default();
        let is_made = |setting: u32| {
            let mut is_made = false;
            let value = memo.get_or_insert_with(&[7, 8], &setting, || {
                is_made = true;
                Ok::<_, ()>(10 * setting)
            });
            assert_eq!(*value.unwrap(), 10 * setting);
            is_made
        };
        let expected = [true, true, false, false, true, false, true];
        assert_eq!([1, 2, 1, 2, 3, 2, 1].map(is_made), expected);
    }
}
