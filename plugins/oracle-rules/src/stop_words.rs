//! Words that say little about what a question is about.

/// English function words, and the words in which one asks for an answer, separated by white space.
pub(crate) const STOP_WORDS: &str = "
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
