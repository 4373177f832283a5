use std::sync::Arc;

use lastgood::attempt::{self, NewAttempt};
use lastgood::commit::{self, Progress};
use lastgood::ledger::{Ledger, Standing, Writer};
use lastgood::{Hash, RunName};
use lastgood_chaos::ranks::content::{self, Base};
use lastgood_format::index::ShardIndex;
use lastgood_format::key::{self, SaveKey};
use lastgood_store::{Env, MemoryStore, Store, SystemEnv};

struct Ranks {
    run: RunName,
    store: Arc<dyn Store>,
    ledgers: [Ledger; 2],
    writer: Writer,
}

impl Ranks {
    async fn start() -> Self {
        let run: RunName = "run".parse().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let env: Arc<dyn Env> = Arc::new(SystemEnv::default());
        let mut ledger =
            Ledger::open(Arc::clone(&store), Arc::clone(&env), run.clone()).await.unwrap();
        let new = NewAttempt { world_size: 2, from: None, incarnation: "one".into() };
        let attempt = attempt::start(&mut ledger, "rank 0", &new).await.unwrap().number;
        let writer = Writer { attempt, actor: "rank".into() };
        Self { run, store, ledgers: [ledger.clone(), ledger], writer }
    }

    async fn write(&self, save: SaveKey, base: Option<&Base>) -> Vec<ShardIndex> {
        let mut indexes = Vec::new();
        for rank in 0..2 {
            let part = content::part(&self.run, save, rank, 2, base, base.map(|base| base.id));
            let object = key::in_run(&self.run, &part.pack).unwrap();
            self.store.put_if_absent(&object, part.stored.into()).await.unwrap();
            commit::publish(&self.ledgers[0], &part.index).await.unwrap();
            indexes.push(part.index);
        }
        indexes
    }

    async fn advance(&mut self, rank: usize, save: SaveKey) -> Progress {
        let (ledger, writer) = (&mut self.ledgers[rank], &self.writer);
        commit::advance(ledger, writer, &save, 2, 0).await.unwrap()
    }

    async fn mark(&mut self, id: &Hash, standing: Standing) {
        let writer = Writer { attempt: 0, actor: "operator".into() };
        lastgood::mark(&mut self.ledgers[0], &writer, id, standing, "test").await.unwrap();
    }
}

/// One rank looks while the base is bad and writes its part again as the next generation. If another
/// could commit the first generation after the base became good again, the one would wait in vain.
#[test]
fn what_was_bad_is_no_base_for_any_rank_even_when_it_is_good_again() {
    lastgood_chaos::sim::check::at_once(async {
        let mut ranks = Ranks::start().await;
        let first = SaveKey { attempt: 1, step: 1, generation: 0 };
        let indexes = ranks.write(first, None).await;
        let Progress::Committed(id) = ranks.advance(0, first).await else {
            panic!("not committed")
        };
        let base = content::base_of(id, &indexes[0]).unwrap();
        let second = SaveKey { attempt: 1, step: 2, generation: 0 };
        ranks.write(second, Some(&base)).await;

        ranks.mark(&id, Standing::Bad).await;
        assert_eq!(ranks.advance(0, second).await, Progress::LostBase(id));
        ranks.mark(&id, Standing::Good).await;
        assert_eq!(ranks.advance(1, second).await, Progress::LostBase(id));
        Ok(())
    })
    .unwrap();
}
