//! A card in memory with an engine on it, for tests.
#![allow(dead_code)]

use std::sync::Arc;

use card_memory::MemoryCard;
use eswitch::card::{Card, Fault, FaultPlan, Faulty, Resource, ResourceKind};
use eswitch::inspect::{PfView, RepState};
use eswitch::{CardConfig, Engine, PciAddress, RepType, Vport};
use lockdep::{Domain, Locked, OnReport, Threads, Unlocked};

pub struct Bench {
    pub engine: Arc<Engine>,
    pub plan: Arc<FaultPlan>,
    pub card: Arc<MemoryCard>,
}

impl Bench {
    pub fn start(cx: &mut Locked<'_, Unlocked>, domain: &Arc<Domain>, config: CardConfig) -> Self {
        Self::try_start(cx, domain, config, |_, _| {}).expect("the card comes up")
    }

    pub fn try_start(
        cx: &mut Locked<'_, Unlocked>,
        domain: &Arc<Domain>,
        config: CardConfig,
        prepare: impl FnOnce(&mut Locked<'_, Unlocked>, &FaultPlan),
    ) -> eswitch::Result<Self> {
        config.validate().unwrap();
        let plan = Arc::new(FaultPlan::default());
        prepare(cx, &plan);
        let card = Arc::new(MemoryCard::new(config.clone()));
        let faulty = Arc::new(Faulty::new(Arc::clone(&card), Arc::clone(&plan)));
        let engine = Engine::start(cx, config, faulty, Arc::new(Threads(Arc::clone(domain))))?;
        Ok(Self { engine, plan, card })
    }

    pub fn fail(&self, cx: &mut Locked<'_, Unlocked>, kind: ResourceKind, vport: Option<Vport>, times: u32) {
        fail(&self.plan, cx, kind, vport, times);
    }

    pub fn pf0(&self, cx: &mut Locked<'_, Unlocked>) -> PfView {
        self.engine.inspect(cx).pfs.remove(0)
    }

    pub fn loaded(&self, cx: &mut Locked<'_, Unlocked>, ty: RepType) -> usize {
        let view = self.pf0(cx);
        view.ports.iter().filter(|p| p.reps[ty as usize] == RepState::Loaded).count()
    }

    /// Settles, checks every invariant, shuts the card down, and checks that nothing is left.
    pub fn end(self, cx: &mut Locked<'_, Unlocked>) {
        self.engine.settle(cx, true);
        assert_eq!(self.engine.check(cx), []);
        self.engine.shutdown(cx);
        assert_eq!(resources(&self.card, cx), []);
        assert_eq!(self.engine.check(cx), []);
    }
}

pub fn fail(plan: &FaultPlan, cx: &mut Locked<'_, Unlocked>, kind: ResourceKind, vport: Option<Vport>, times: u32) {
    plan.add(cx, Fault { kind, pf: None, vport, after: 0, times, delay: None });
}

pub fn resources(card: &MemoryCard, cx: &mut Locked<'_, Unlocked>) -> Vec<Resource> {
    card.resources(&mut cx.narrow())
}

pub fn addr() -> PciAddress {
    CardConfig::default().address
}

/// Runs a story on a thread of a domain that panics at the first report.
pub fn story(f: impl FnOnce(&mut Locked<'_, Unlocked>, &Arc<Domain>)) {
    let domain = Domain::checked(OnReport::Panic);
    lockdep::enter(&domain, "story", |cx| f(cx, &domain));
}
