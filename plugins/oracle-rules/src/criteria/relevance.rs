//! The criterion `relevance`: the response that uses more words of the question is better.

use std::collections::HashSet;

use sppo_plugin::PluginError;

use super::{Criterion, checked_margin};
use crate::config::RelevanceConfig;
use crate::text::{Reading, words};

/// The share of the question's content words that the response uses.
pub(crate) struct Relevance {
    stop_words: HashSet<String>,
    margin: f64,
}

impl Relevance {
    pub(crate) fn new(config: &RelevanceConfig) -> Result<Self, PluginError> {
        let margin = checked_margin("relevance", config.margin)?;
        let built_in = STOP_WORDS.split_whitespace().map(str::to_owned);
        let extra = config.extra_stop_words.iter().flat_map(|text| words(text));
        Ok(Self { stop_words: built_in.chain(extra).collect(), margin })
    }

    fn content_stems<'a>(&self, words: &'a [String]) -> HashSet<&'a str> {
        words
            .iter()
            .filter(|word| !self.stop_words.contains(*word) && word.contains(char::is_alphabetic))
            .map(|word| stem(word))
            .collect()
    }
}

impl Criterion for Relevance {
    fn measures(&self, reading: &Reading<'_>) -> Vec<Option<f64>> {
        let wanted = self.content_stems(&reading.question_words);
        let share = |words: &[String]| {
            let used: HashSet<&str> = words.iter().map(|word| stem(word)).collect();
            let count = wanted.intersection(&used).count();
            (!wanted.is_empty()).then(|| count as f64 / wanted.len() as f64)
        };
        reading.responses.iter().map(|response| share(&response.words)).collect()
    }

    fn margin(&self) -> f64 {
        self.margin
    }
}

/// A word without common English endings, so that `bake`, `bakes`, `baked` and `baking` are one word,
/// and so are `berry` and `berries`. Only ever compared with other stems; it need not be a word.
fn stem(word: &str) -> &str {
    const SHORTEST_STEM: usize = 3;
    let mut stem = word.strip_suffix("'s").unwrap_or(word);
    for endings in [&["ing", "ed", "es", "s"][..], &["e", "ie", "i", "y"]] {
        let shorter = endings.iter().find_map(|ending| stem.strip_suffix(ending));
        stem = shorter.filter(|shorter| shorter.len() >= SHORTEST_STEM).unwrap_or(stem);
    }
    // running, run
    let mut letters = stem.chars().rev();
    match (letters.next(), letters.next()) {
        (Some(last), Some(before)) if last == before && stem.len() > SHORTEST_STEM => {
            stem.strip_suffix(last).unwrap_or(stem)
        }
        _ => stem,
    }
}

/// Words that say little about the subject of a question: English function words, and the words in which
/// one asks for an answer, separated by white space.
const STOP_WORDS: &str = "
a an the this that these those such same other another each every either neither both all any some
few many much more most less least several enough no not nor only own very too so than then there
here now just also even still yet already again ever never always often sometimes usually maybe

i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself
she her hers herself it its itself they them their theirs themselves who whom whose which what
someone somebody something anyone anybody anything everyone everybody everything one ones nobody
nothing

am is are was were be been being do does did doing done have has had having can could may might must
shall should will would ought let lets get gets got getting go goes going gone went make makes made
making take takes took taken taking need needs needed want wants wanted like likes try tries tried
use uses used using i'm i've i'd i'll you're you've you'd you'll he's she's it's that's there's
what's who's we're we've we'd we'll they're they've isn't aren't wasn't weren't don't doesn't didn't
can't cannot couldn't won't wouldn't shouldn't haven't hasn't hadn't

and or but if because as until while of at by for with about against between into through during
before after above below to from up down in out on off over under along across around beside near
within without toward towards upon onto per via how when where why whether though although unless
since once however

please tell give gives show write rewrite explain describe list name say says said state suggest
summarise summarize sum answer answers ask question questions find help provide include including
consider think know mean means main point points way ways thing things kind kinds sort reason
reasons example examples idea ideas tip tips step steps sentence sentences word words line lines
paragraph text message note short brief briefly simple simply clear exactly main first second third
last next one two three four five six seven eight nine ten

good better best bad well nice new old little bit lot lots really quite
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criteria::Vote;
    use crate::criteria::testing::vote;

    fn relevance(margin: f64, extra: &[&str]) -> Relevance {
        let extra_stop_words = extra.iter().map(|&word| word.into()).collect();
        Relevance::new(&RelevanceConfig { margin, extra_stop_words, ..Default::default() }).unwrap()
    }

    #[test]
    fn stems_unite_the_forms_of_a_word() {
        for forms in [
            &["bake", "bakes", "baked", "baking"][..],
            &["berry", "berries"],
            &["run", "runs", "running"],
            &["box", "boxes", "box's"],
            &["tell", "tells", "telling"],
            &["größe"],
            &["sea", "seas"],
        ] {
            let stems: HashSet<_> = forms.iter().map(|form| stem(form)).collect();
            assert_eq!(stems.len(), 1, "{forms:?} -> {stems:?}");
        }
        assert_ne!(stem("sing"), stem("sed"));
    }

    #[test]
    fn the_answer_that_speaks_of_the_subject_wins() {
        let question = "Please explain why the leaves of trees turn yellow.";
        let on_topic = "A tree takes the green out of each leaf; what stays behind is yellow.";
        let off_topic = "Please let me explain that this is a question of the seasons.";
        assert_eq!(vote(&relevance(0.1, &[]), question, [on_topic, off_topic]), Vote::First);
        assert_eq!(vote(&relevance(0.1, &[]), question, [off_topic, on_topic]), Vote::Second);
        assert_eq!(vote(&relevance(1.0, &[]), question, [on_topic, off_topic]), Vote::Tie);
        let ignored = relevance(0.1, &["leaves", "trees", "turn", "Yellow"]);
        assert_eq!(vote(&ignored, question, [on_topic, off_topic]), Vote::Tie);
    }

    #[test]
    fn a_question_without_content_words_says_nothing() {
        assert_eq!(vote(&relevance(0.0, &[]), "Why? What is 7?", ["7", "Why is it so"]), Vote::Tie);
    }
}
