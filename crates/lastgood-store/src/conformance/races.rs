//! Creators of the same object at the same time.

use std::sync::Barrier;

use bytes::Bytes;

use super::site::{Broken, Site, ensure};
use crate::{Put, Result};

/// What one creator was told in one round, and the bytes that it read then.
type Told = Result<(Put, Bytes)>;

pub(super) async fn racing_creators(site: &Site<'_>) -> Result<(), Broken> {
    let (racers, rounds) = (site.options.racers, site.options.race_rounds);
    let barrier = Barrier::new(racers);
    let key = |round: usize| site.key(&format!("{}/round-{round}", round % 3));
    let bytes = |racer: usize, round: usize| format!("racer {racer} in round {round}");
    let told: Vec<Vec<Told>> = site.in_threads(racers, |racer, store, runtime| {
        (0..rounds)
            .map(|round| {
                barrier.wait();
                runtime.block_on(async {
                    let payload = bytes(racer, round).into();
                    let put = store.put_if_absent(&key(round), payload).await?;
                    Ok((put, store.get(&key(round), 100).await?))
                })
            })
            .collect()
    })?;
    for round in 0..rounds {
        let of_round: Vec<&Told> = told.iter().map(|told| &told[round]).collect();
        let mut winners = Vec::new();
        for (racer, told) in of_round.iter().enumerate() {
            match told {
                Ok((Put::Created, _)) => winners.push(racer),
                Ok((Put::Exists, _)) => {}
                Err(error) => return Err(error.clone().into()),
            }
        }
        let [winner] = winners[..] else {
            return Err(Broken(format!(
                "in round {round}, {} of {racers} creators were told Created: {winners:?}",
                winners.len()
            )));
        };
        let expected = bytes(winner, round);
        for (racer, told) in of_round.iter().enumerate() {
            let read = told.as_ref().map(|(_, read)| read.as_ref()).unwrap_or_default();
            ensure!(
                read == expected.as_bytes(),
                "in round {round}, racer {winner} won, and racer {racer} read {:?}",
                String::from_utf8_lossy(read)
            );
        }
        site.expect(&key(round)[site.key("").len()..], expected.as_bytes()).await?;
    }
    Ok(())
}
