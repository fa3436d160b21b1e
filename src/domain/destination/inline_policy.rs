//! Rules for destinations that come in jobs: `[inline]` of the configuration.

use super::{AccountId, Auth, Destination, Invalid};
use crate::domain::pattern::matches;

/// Placeholder in a pattern for the job's own tenant.
const TENANT: &str = "{tenant}";
/// Characters of a tenant's name beside letters and digits that may stand in a pattern. A `*` of a
/// job must never become one of a pattern, nor a `/` another folder.
const TENANT_CHARACTERS: &str = "._=@+-";

/// Rules for destinations that come in jobs. None of them is allowed by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlinePolicy {
    /// True if jobs may bring destinations at all.
    pub enabled: bool,
    /// True if each must have an external id.
    pub external_id_required: bool,
    /// Pattern of external ids.
    pub external_id_pattern: Option<String>,
    /// Patterns of roles; empty for all.
    pub role_arns: Vec<String>,
    /// Accounts of the roles; empty for all.
    pub accounts: Vec<AccountId>,
    /// Pattern of prefixes.
    pub prefix_pattern: Option<String>,
}

impl Default for InlinePolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            external_id_required: true,
            external_id_pattern: None,
            role_arns: Vec::new(),
            accounts: Vec::new(),
            prefix_pattern: None,
        }
    }
}

impl InlinePolicy {
    /// Checks a destination that came in a job. The error names the rule and the remedy; its field
    /// is relative to the destination, and it quotes no external id.
    pub fn check(&self, destination: &Destination) -> Result<(), Invalid> {
        let refused = |field: &str, rule: &str, remedy: &str| {
            Err(Invalid::new(field, format!("is refused by inline.{rule} of the worker's configuration; {remedy}")))
        };
        if !self.enabled {
            return Err(Invalid::new(
                "",
                "came with the job, and this worker takes configured destinations only; configure it, or set \
                 inline.enabled = true",
            ));
        }
        let Auth::IamRole { role_arn, external_id } = &destination.auth else {
            return refused("auth.method", "enabled", "use iam_role, or configure the destination");
        };
        let fits = |pattern: &String, text: &str| fits(pattern, destination.tenant.as_deref(), text);
        let unfit = |pattern: &Option<String>, text: &str| pattern.as_ref().is_some_and(|pattern| !fits(pattern, text));
        let demanded = self.external_id_required || self.external_id_pattern.is_some();
        let (field, rule, remedy) = if external_id.is_none() && demanded {
            ("auth.external_id", "external_id", "give the external id that the role's trust policy demands")
        } else if external_id.as_ref().is_some_and(|id| unfit(&self.external_id_pattern, id.expose())) {
            ("auth.external_id", "external_id_pattern", "give the external id that was issued for this tenant")
        } else if !self.accounts.is_empty() && !self.accounts.contains(role_arn.account()) {
            ("auth.role_arn", "accounts", "use a role of an account that is listed there, or extend it")
        } else if !self.role_arns.is_empty() && !self.role_arns.iter().any(|pattern| fits(pattern, role_arn.as_str())) {
            ("auth.role_arn", "role_arns", "use a role that is allowed there for the job's tenant, or extend it")
        } else if unfit(&self.prefix_pattern, destination.prefix.as_str()) {
            ("prefix", "prefix_pattern", "use a prefix that is allowed there for the job's tenant, or extend it")
        } else {
            return Ok(());
        };
        refused(field, rule, remedy)
    }
}

/// Returns true if the text matches the pattern, with the job's tenant in its place. A pattern that
/// needs a tenant matches nothing without one.
fn fits(pattern: &str, tenant: Option<&str>, text: &str) -> bool {
    if !pattern.contains(TENANT) {
        return matches(pattern, text);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || TENANT_CHARACTERS.contains(c);
    let tenant = tenant.filter(|name| !name.is_empty() && name.chars().all(plain) && !name.starts_with('.'));
    tenant.is_some_and(|tenant| matches(&pattern.replace(TENANT, tenant), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::destination::raw::RawDestination;

    const ROLE: &str = "arn:aws:iam::111111111111:role/consign-acme";

    fn destination(change: impl FnOnce(&mut RawDestination)) -> Destination {
        let mut raw =
            RawDestination { id: Some("a".to_owned()), tenant: Some("acme".into()), ..RawDestination::default() };
        (raw.bucket, raw.region, raw.prefix) = ("bucket".into(), "eu-central-1".into(), "acme/exports/".into());
        (raw.auth.role_arn, raw.auth.external_id) = (Some(ROLE.to_owned()), Some("ours:acme".to_owned()));
        change(&mut raw);
        raw.validate_inline().unwrap()
    }

    fn open() -> InlinePolicy {
        InlinePolicy { enabled: true, external_id_required: false, ..InlinePolicy::default() }
    }

    fn refusal(policy: &InlinePolicy, change: impl FnOnce(&mut RawDestination)) -> Option<String> {
        policy.check(&destination(change)).err().map(|problem| problem.to_string())
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let refused = refusal(&InlinePolicy::default(), |_| ()).unwrap();
        assert!(refused.contains("inline.enabled"), "{refused}");
    }

    #[test]
    fn each_rule_refuses_alone_and_is_named() {
        let text = |text: &str| Some(text.to_owned());
        let account = AccountId::parse("222222222222").unwrap();
        for (policy, rule, field) in [
            (
                InlinePolicy { external_id_pattern: text("ours:beta*"), ..open() },
                "external_id_pattern",
                "auth.external_id",
            ),
            (
                InlinePolicy { role_arns: vec!["arn:aws:iam::*:role/consign-beta".into()], ..open() },
                "role_arns",
                "auth.role_arn",
            ),
            (InlinePolicy { accounts: vec![account], ..open() }, "accounts", "auth.role_arn"),
            (InlinePolicy { prefix_pattern: text("beta/*"), ..open() }, "prefix_pattern", "prefix"),
        ] {
            let refused = refusal(&policy, |_| ()).unwrap();
            assert!(refused.starts_with(field) && refused.contains(&format!("inline.{rule} ")), "{refused}");
            assert!(!refused.contains("ours:acme"), "{refused}");
        }
        let required = InlinePolicy { external_id_required: true, ..open() };
        assert_eq!(refusal(&required, |_| ()), None);
        assert!(refusal(&required, |raw| raw.auth.external_id = None).unwrap().contains("inline.external_id "));
        assert_eq!(refusal(&open(), |raw| raw.auth.external_id = None), None);
    }

    #[test]
    fn the_tenant_of_the_job_stands_in_a_pattern() {
        let policy = InlinePolicy {
            external_id_pattern: Some("ours:{tenant}".to_owned()),
            role_arns: vec!["arn:aws:iam::*:role/consign-{tenant}".to_owned()],
            prefix_pattern: Some("{tenant}/*".to_owned()),
            ..open()
        };
        assert_eq!(refusal(&policy, |_| ()), None);
        assert!(refusal(&policy, |raw| raw.auth.role_arn = Some(ROLE.replace("-acme", "-beta"))).is_some());
        assert!(refusal(&policy, |raw| raw.prefix = "acme-2/".to_owned()).is_some());
        for tenant in [None, Some(""), Some("*"), Some("ac*"), Some("beta"), Some("."), Some("a/b")] {
            assert!(refusal(&policy, |raw| raw.tenant = tenant.map(str::to_owned)).is_some(), "{tenant:?}");
        }
    }

    proptest::proptest! {
        /// A job can't widen a pattern by the name of its tenant.
        #[test]
        fn a_tenant_matches_itself_alone(tenant in ".{0,12}", other in "[a-z]{1,8}") {
            let fitting = super::fits("role/{tenant}", Some(&tenant), &format!("role/{other}"));
            proptest::prop_assert_eq!(fitting, tenant == other);
        }
    }
}
