//! The customer's side as a CloudFormation template.

use serde_json::{Map, Value, json};

use super::document::Scope;
use super::party::{Party, TemplateDocuments};
use crate::domain::destination::Destination;

/// A template that creates the role (or user) with its permissions. What the customer may change is
/// a parameter; the bucket, the prefix and who is trusted are not, because consign is configured
/// with them.
pub fn cloudformation(destination: &Destination, scope: &Scope, party: &Party) -> Value {
    let documents = TemplateDocuments::of(destination, scope, &json!({ "Ref": "DefaultKmsKeyArn" }));
    json!({
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": format!("Lets consign write into s3://{}/{}", destination.bucket, ascii(destination.prefix.as_str())),
        "Parameters": parameters(party, &documents),
        "Conditions": conditions(&documents),
        "Resources": resources(party, &documents),
        "Outputs": outputs(party),
    })
}

/// The description of a template takes 1,024 characters of ASCII.
fn ascii(text: &str) -> String {
    text.chars().take(900).map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

fn parameters(party: &Party, documents: &TemplateDocuments) -> Value {
    let (parameter, name, what) = match party {
        Party::Role { name, .. } => ("RoleName", name, "The role's name; tell the platform if you change it"),
        Party::User { name } => ("UserName", name, "The user's name"),
    };
    let mut all = json!({
        parameter: { "Type": "String", "Default": name, "Description": what, "AllowedPattern": r"[\w+=,.@-]{1,64}" },
        "PermissionsBoundaryArn": {
            "Type": "String",
            "Default": "",
            "Description": "The ARN of a permissions boundary, if your organization requires one; else empty",
        },
    });
    if documents.optional.is_some() {
        all["OptionalPermissions"] = json!({
            "Type": "String",
            "Default": "true",
            "AllowedValues": ["true", "false"],
            "Description": "Whether to grant what deliveries work without: listing, cleaning up, the bucket's region",
        });
    }
    if documents.default_key.is_some() {
        all["DefaultKmsKeyArn"] = json!({
            "Type": "String",
            "Default": "",
            "AllowedPattern": "(arn:[^:]+:kms:[^:]+:[0-9]{12}:key/.+)?",
            "Description": "The ARN of the KMS key of your own that the bucket encrypts with by default; empty if there is none",
        });
    }
    all
}

fn conditions(documents: &TemplateDocuments) -> Value {
    let given = |parameter: &str| json!({ "Fn::Not": [{ "Fn::Equals": [{ "Ref": parameter }, ""] }] });
    let mut all = json!({ "HasBoundary": given("PermissionsBoundaryArn") });
    if documents.optional.is_some() {
        all["GrantsOptional"] = json!({ "Fn::Equals": [{ "Ref": "OptionalPermissions" }, "true"] });
    }
    if documents.default_key.is_some() {
        all["HasDefaultKey"] = given("DefaultKmsKeyArn");
    }
    all
}

fn resources(party: &Party, documents: &TemplateDocuments) -> Value {
    let boundary = json!({ "Fn::If": ["HasBoundary", { "Ref": "PermissionsBoundaryArn" }, { "Ref": "AWS::NoValue" }] });
    let holder = match party {
        Party::Role { path, trust, .. } => json!({
            "Type": "AWS::IAM::Role",
            "Properties": {
                "RoleName": { "Ref": "RoleName" },
                "Path": path,
                "Description": "consign writes files into one bucket with this role",
                "MaxSessionDuration": 3600,
                "AssumeRolePolicyDocument": trust,
                "PermissionsBoundary": boundary,
            },
        }),
        Party::User { .. } => json!({
            "Type": "AWS::IAM::User",
            "Properties": { "UserName": { "Ref": "UserName" }, "PermissionsBoundary": boundary },
        }),
    };
    let mut all = Map::new();
    all.insert(holder_name(party).to_owned(), holder);
    all.insert("Permissions".to_owned(), policy(party, "consign", &documents.required, None));
    if let Some(optional) = &documents.optional {
        let policy = policy(party, "consign-optional", optional, Some("GrantsOptional"));
        all.insert("OptionalPermissionsPolicy".to_owned(), policy);
    }
    if let Some(key) = &documents.default_key {
        let policy = policy(party, "consign-default-key", key, Some("HasDefaultKey"));
        all.insert("DefaultKeyPermissions".to_owned(), policy);
    }
    Value::Object(all)
}

/// A policy of the role, or for a user a managed one: the inline policies of a user hold 2,048
/// characters together.
fn policy(party: &Party, name: &str, document: &Value, condition: Option<&str>) -> Value {
    let holder = json!({ "Ref": holder_name(party) });
    let mut policy = match party {
        Party::Role { .. } => json!({
            "Type": "AWS::IAM::RolePolicy",
            "Properties": { "PolicyName": name, "RoleName": holder, "PolicyDocument": document },
        }),
        Party::User { .. } => json!({
            "Type": "AWS::IAM::ManagedPolicy",
            "Properties": { "Users": [holder], "PolicyDocument": document },
        }),
    };
    if let Some(condition) = condition {
        policy["Condition"] = condition.into();
    }
    policy
}

fn holder_name(party: &Party) -> &'static str {
    match party {
        Party::Role { .. } => "Role",
        Party::User { .. } => "User",
    }
}

fn outputs(party: &Party) -> Value {
    match party {
        Party::Role { .. } => json!({
            "RoleArn": { "Description": "Give this to the platform", "Value": { "Fn::GetAtt": ["Role", "Arn"] } },
        }),
        Party::User { .. } => json!({
            "UserName": { "Description": "Create an access key for this user", "Value": { "Ref": "User" } },
        }),
    }
}
