//! A list that is either lent or owned.

use std::fmt;
use std::ops::Deref;

/// A list that whoever made it owns or has borrowed; read it as a slice. Unlike `Cow<[T]>` it may
/// stand where one of a shorter lifetime is asked for.
#[derive(Clone)]
pub enum List<'a, T> {
    /// Somebody else's.
    Lent(&'a [T]),
    /// Its own.
    Owned(Vec<T>),
}

impl<T> Deref for List<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Lent(values) => values,
            Self::Owned(values) => values,
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for List<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

impl<T: PartialEq> PartialEq for List<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for List<'_, T> {}

impl<'a, T> From<&'a [T]> for List<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self::Lent(values)
    }
}

impl<T> From<Vec<T>> for List<'_, T> {
    fn from(values: Vec<T>) -> Self {
        Self::Owned(values)
    }
}

impl<T, const LENGTH: usize> From<[T; LENGTH]> for List<'_, T> {
    fn from(values: [T; LENGTH]) -> Self {
        Self::Owned(values.into())
    }
}

impl<T> FromIterator<T> for List<'_, T> {
    fn from_iter<Values: IntoIterator<Item = T>>(values: Values) -> Self {
        Self::Owned(values.into_iter().collect())
    }
}

impl<'a, T> IntoIterator for &'a List<'_, T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
