//! A scorer that a team holds, as rank 0 sees it.

use std::path::Path;
use std::rc::Rc;

use sppo_plugin::{PluginError, Scorer, SilentHost};

use super::controller::Controller;
use super::member::OwnFiles;
use super::policy::{only, parts};
use super::protocol::{Command, Handle, Reply, ScorerPlan};
use crate::formats::WeightFile;
use crate::formats::safetensors::SafetensorsFiles;
use crate::ops::encoder::EncoderOps;
use crate::serve::scorer::{ScorerConfig, of_directory};

/// A scorer of which every rank holds a replica.
pub(crate) struct TeamScorer<O: EncoderOps + Clone> {
    team: Rc<Controller<O>>,
    handle: Handle,
    width: usize,
}

impl<O: EncoderOps + Clone> TeamScorer<O> {
    /// Opens the model on rank 0 and sends its weights to all.
    pub(crate) fn load(team: Rc<Controller<O>>, directory: &Path) -> Result<Self, PluginError> {
        let named = |error| PluginError::from(of_directory(error, directory));
        let files = SafetensorsFiles::open(directory).map_err(named)?;
        let config = ScorerConfig::read(directory, &files).map_err(named)?;
        let shape = |name: &str| Some((name.to_owned(), files.shape(name)?.to_vec()));
        let shapes = files.names().filter_map(shape).collect();
        let (handle, width) = (team.new_handle(), config.width());
        let command = Command::LoadScorer(handle, Box::new(ScorerPlan { config, shapes }));
        team.ask_about(&command, OwnFiles::Weights(&files), &SilentHost)
            .inspect_err(|_| team.give_up(handle))?;
        Ok(Self { team, handle, width })
    }
}

impl<O: EncoderOps + Clone> Drop for TeamScorer<O> {
    fn drop(&mut self) {
        self.team.give_up(self.handle);
    }
}

impl<O: EncoderOps + Clone> Scorer for TeamScorer<O> {
    fn score(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<f32>, PluginError> {
        only(self.score_each(&[sequences.to_vec()])?)
    }

    fn width(&self) -> usize {
        self.width
    }

    fn replicas(&self) -> usize {
        self.team.size()
    }

    fn score_each(&mut self, batches: &[Vec<Vec<u32>>]) -> Result<Vec<Vec<f32>>, PluginError> {
        let mut scores = Vec::with_capacity(batches.len());
        for together in batches.chunks(self.team.size()) {
            let replies = self.team.ask(&Command::Score(self.handle, together.to_vec()))?;
            scores.extend(parts(replies, together.len(), |reply| match reply {
                Reply::Scores(scores) => Some(scores),
                _ => None,
            })?);
        }
        Ok(scores)
    }
}
