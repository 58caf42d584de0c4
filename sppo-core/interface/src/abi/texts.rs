//! Conversations and candidates, which the other side borrows for the length of a call.

use std::borrow::Cow;

use abi_stable::StableAbi;
use abi_stable::std_types::{ROption, RSlice, RStr};

use crate::{Candidate, Comparison, FinishReason, Message};

#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiMessage<'a> {
    pub role: RStr<'a>,
    pub content: RStr<'a>,
}

impl<'a> From<&'a Message<'_>> for AbiMessage<'a> {
    fn from(message: &'a Message<'_>) -> Self {
        Self { role: RStr::from(&*message.role), content: RStr::from(&*message.content) }
    }
}

impl<'a> From<&AbiMessage<'a>> for Message<'a> {
    fn from(message: &AbiMessage<'a>) -> Self {
        Self {
            role: Cow::Borrowed(message.role.as_str()),
            content: Cow::Borrowed(message.content.as_str()),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiCandidate<'a> {
    pub text: RStr<'a>,
    pub finish_reason: ROption<FinishReason>,
    pub token_count: ROption<usize>,
}

impl<'a> From<&'a Candidate<'_>> for AbiCandidate<'a> {
    fn from(candidate: &'a Candidate<'_>) -> Self {
        Self {
            text: RStr::from(&*candidate.text),
            finish_reason: candidate.finish_reason.into(),
            token_count: candidate.token_count.into(),
        }
    }
}

impl<'a> From<&AbiCandidate<'a>> for Candidate<'a> {
    fn from(candidate: &AbiCandidate<'a>) -> Self {
        Self {
            text: Cow::Borrowed(candidate.text.as_str()),
            finish_reason: candidate.finish_reason.into(),
            token_count: candidate.token_count.into(),
        }
    }
}

/// A comparison, whose prompt and candidates are parts of [`BorrowedTexts`].
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiComparison<'a> {
    pub prompt: RSlice<'a, AbiMessage<'a>>,
    pub rendered_prompt: ROption<RStr<'a>>,
    pub candidates: RSlice<'a, AbiCandidate<'a>>,
}

/// Texts that a library borrows in a call: the prompts' messages and the candidates of all comparisons,
/// one after the other. A list for each comparison would cost more than all the rest of the crossing.
pub struct BorrowedTexts<'a> {
    comparisons: &'a [Comparison<'a>],
    messages: Vec<AbiMessage<'a>>,
    candidates: Vec<AbiCandidate<'a>>,
}

impl<'a> BorrowedTexts<'a> {
    pub fn new(comparisons: &'a [Comparison<'a>]) -> Self {
        Self {
            comparisons,
            messages: gathered(comparisons.iter().map(|comparison| &*comparison.prompt)),
            candidates: gathered(comparisons.iter().map(|comparison| &*comparison.candidates)),
        }
    }

    pub fn comparisons(&self) -> Vec<AbiComparison<'_>> {
        let mut messages = Rest(&self.messages);
        let mut candidates = Rest(&self.candidates);
        let borrow = |comparison: &'a Comparison<'a>| AbiComparison {
            prompt: messages.take(comparison.prompt.len()).into(),
            rendered_prompt: comparison.rendered_prompt.as_deref().map(RStr::from).into(),
            candidates: candidates.take(comparison.candidates.len()).into(),
        };
        self.comparisons.iter().map(borrow).collect()
    }
}

/// The same two lists as [`BorrowedTexts`], in the author's types.
pub struct ReceivedTexts<'a> {
    comparisons: &'a [AbiComparison<'a>],
    messages: Vec<Message<'a>>,
    candidates: Vec<Candidate<'a>>,
}

impl<'a> ReceivedTexts<'a> {
    pub fn new(comparisons: &'a [AbiComparison<'a>]) -> Self {
        let candidates = comparisons.iter().map(|comparison| comparison.candidates.as_slice());
        Self {
            comparisons,
            messages: gathered(comparisons.iter().map(|comparison| comparison.prompt.as_slice())),
            candidates: gathered(candidates),
        }
    }

    pub fn comparisons(&self) -> Vec<Comparison<'_>> {
        let mut messages = Rest(&self.messages);
        let mut candidates = Rest(&self.candidates);
        let receive = |comparison: &'a AbiComparison<'a>| {
            let rendered_prompt = comparison.rendered_prompt.into_option();
            Comparison {
                prompt: messages.take(comparison.prompt.len()).into(),
                rendered_prompt: rendered_prompt.map(|text| Cow::Borrowed(text.as_str())),
                candidates: candidates.take(comparison.candidates.len()).into(),
            }
        };
        self.comparisons.iter().map(receive).collect()
    }
}

/// The values of several lists, in one.
fn gathered<'a, T: 'a, U: From<&'a T>>(lists: impl Iterator<Item = &'a [T]> + Clone) -> Vec<U> {
    let mut gathered = Vec::with_capacity(lists.clone().map(<[T]>::len).sum());
    for list in lists {
        gathered.extend(list.iter().map(U::from));
    }
    gathered
}

/// The rest of a list.
struct Rest<'a, T>(&'a [T]);

impl<'a, T> Rest<'a, T> {
    fn take(&mut self, count: usize) -> &'a [T] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }
}
