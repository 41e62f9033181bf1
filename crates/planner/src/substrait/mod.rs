//! What does this Substrait plan mean? Its bytes to a logical plan over the tables of one statement.
//!
//! `datafusion-substrait` turns relations and expressions into DataFusion's; `consumer.rs` gives it our tables, `complete.rs`
//! checks what it takes for granted. Like a text of SQL, a plan reads each table on one snapshot, with the rights of the
//! session, and our rules find the searches in it: `ORDER BY cosine_distance(…) LIMIT k` is one, however it was sent. The nesting
//! of a plan is bounded by that of its messages, 100.

mod complete;
mod consumer;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use datafusion::common::{not_impl_err, plan_datafusion_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;
use datafusion_substrait::extensions::Extensions;
use datafusion_substrait::logical_plan::consumer::from_substrait_plan_with_consumer;
use datafusion_substrait::substrait::proto::{Plan, plan_rel};
use datafusion_substrait::substrait::version::{
    SUBSTRAIT_MAJOR_VERSION, SUBSTRAIT_MINOR_VERSION, SUBSTRAIT_PATCH_VERSION,
};
use prost::Message;

use crate::Planner;
use consumer::Consumer;

/// The largest plan, in bytes.
pub const PLAN_BYTES_MAX: usize = 16 << 20;

/// The oldest version whose plans are read: since then the name of a function holds the types of its arguments.
pub const VERSION_MIN: (u32, u32, u32) = (0, 32, 0);

/// The newest version whose plans are read: of what came later, parts would be overlooked.
pub const VERSION_MAX: (u32, u32, u32) = (SUBSTRAIT_MAJOR_VERSION, SUBSTRAIT_MINOR_VERSION, SUBSTRAIT_PATCH_VERSION);

/// A plan as a client sent it.
#[derive(Clone)]
pub struct SubstraitPlan {
    plan: Arc<Plan>,
    bytes: Arc<[u8]>,
}

impl SubstraitPlan {
    /// Reads the bytes of a `substrait.Plan`.
    ///
    /// # Errors
    /// Bytes that are none, too many of them, messages nested too deep, another version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > PLAN_BYTES_MAX {
            return plan_err!(
                "the Substrait plan has {} bytes, more than the {PLAN_BYTES_MAX} that are accepted",
                bytes.len()
            );
        }
        let plan = Plan::decode(bytes)
            .map_err(|error| plan_datafusion_err!("the bytes cannot be read as a Substrait plan: {error}"))?;
        if let Some(version) = &plan.version {
            let given = (version.major_number, version.minor_number, version.patch_number);
            // The last number brings no new parts.
            let is_newer = (given.0, given.1) > (VERSION_MAX.0, VERSION_MAX.1);
            if given != (0, 0, 0) && (given < VERSION_MIN || is_newer) {
                let shown = |(major, minor, patch): (u32, u32, u32)| format!("{major}.{minor}.{patch}");
                return not_impl_err!(
                    "the plan is one of Substrait {}, and those of {} to {} are read; it is not supported",
                    shown(given),
                    shown(VERSION_MIN),
                    shown(VERSION_MAX)
                );
            }
        }
        Ok(Self { plan: Arc::new(plan), bytes: bytes.into() })
    }

    /// The bytes that it was read from.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What stands for its text in lists of statements.
    pub fn shown(&self) -> String {
        let producer =
            self.plan.version.as_ref().map(|version| version.producer.trim()).filter(|name| !name.is_empty());
        // It is anybody's text: only its beginning is shown, without control characters.
        let by = producer.map(|name| name.chars().filter(|letter| !letter.is_control()).take(40).collect::<String>());
        format!(
            "(Substrait plan of {} bytes{})",
            self.bytes.len(),
            by.map(|by| format!(" by {by}")).unwrap_or_default()
        )
    }
}

impl fmt::Debug for SubstraitPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Planner<'_> {
    /// Plans a Substrait plan. Its dynamic parameters become `$1`, `$2`, … and stay in the plan.
    ///
    /// # Errors
    /// Unknown names, types that do not fit, relations and functions that are not supported (all that writes among them),
    /// a plan that lacks a part.
    pub async fn substrait(&self, plan: &SubstraitPlan) -> Result<LogicalPlan> {
        let plan = plan.plan.as_ref();
        if plan.advanced_extensions.as_ref().is_some_and(|extension| extension.enhancement.is_some()) {
            return not_impl_err!("an enhancement of a Substrait plan is not supported; send the plan without it");
        }
        if !plan.parameter_bindings.is_empty() {
            return not_impl_err!(
                "values of parameters in a Substrait plan are not supported; prepare it and bind them"
            );
        }
        let [tree] = plan.relations.as_slice() else {
            return plan_err!("a Substrait plan has one tree of relations, and this has {}", plan.relations.len());
        };
        if matches!(&tree.rel_type, Some(plan_rel::RelType::Root(root)) if root.input.is_none()) {
            return Err(complete::lacks("its root", "input"));
        }
        let extensions = Extensions::try_from(&plan.extensions)?;
        if !extensions.type_variations.is_empty() {
            return not_impl_err!("variations of types in a Substrait plan are not supported");
        }
        let known: BTreeSet<_> = self.resolver.names().await?.into_iter().collect();
        from_substrait_plan_with_consumer(&Consumer::new(self, extensions, known), plan).await
    }
}
