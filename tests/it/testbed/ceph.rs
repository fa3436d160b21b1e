//! Ceph's Object Gateway with its own STS: an account is a tenant, a role's objects belong to its
//! tenant and are read back by a bucket policy, and `+` is no blank in the body of a form, so that
//! policies have none. tests/stores/ceph starts it.

use aws_sdk_s3::Client;
use serde_json::{Value, json};

use super::exported;
use super::moto::{Key, iam, s3_client};

/// The gateway, the customer's administrator, and two more users of its tenant.
#[derive(Debug, Clone)]
pub struct Ceph {
    pub url: String,
    pub kms_key: String,
    pub platform: Key,
    pub writer: Key,
    pub reader: Key,
    pub s3: Client,
    account: String,
    admin: Key,
}

impl Ceph {
    pub fn shared() -> Self {
        let variable = |name: &str| exported(&format!("CONSIGN_TEST_CEPH_{name}"));
        let key = |name: &str| Key { id: format!("CEPH{name}"), secret: variable(&format!("{name}_SECRET")) };
        let (url, admin) = (variable("URL"), key("ADMIN"));
        Self {
            s3: s3_client(&url, &admin, "us-east-1"),
            kms_key: variable("KMS_KEY"),
            account: variable("ACCOUNT"),
            platform: key("PLATFORM"),
            writer: key("WRITER"),
            reader: key("READER"),
            url,
            admin,
        }
    }

    fn user(&self, name: &str) -> Value {
        json!({"AWS": [format!("arn:aws:iam::{}:user/{name}", self.account)]})
    }

    /// A bucket in which each of these users may do what its statements say.
    pub async fn make_bucket(&self, name: &str, users: &[(&str, Value)]) {
        self.s3.create_bucket().bucket(name).send().await.unwrap();
        let whole = [format!("arn:aws:s3:::{name}"), format!("arn:aws:s3:::{name}/*")];
        let mut all =
            vec![json!({"Effect": "Allow", "Principal": self.user("admin"), "Action": "s3:*", "Resource": whole})];
        for (user, statements) in users {
            for statement in statements.as_array().unwrap().iter().filter(|one| one["Action"] != "sts:AssumeRole") {
                let mut statement = statement.clone();
                statement["Principal"] = self.user(user);
                all.push(statement);
            }
        }
        let policy = json!({"Version": "2012-10-17", "Statement": all}).to_string();
        self.s3.put_bucket_policy().bucket(name).policy(policy).send().await.unwrap();
    }

    /// A role that the platform may assume; gives its ARN.
    pub async fn make_role(&self, name: &str, statements: &Value) -> String {
        let document = |statements: &Value| json!({"Version": "2012-10-17", "Statement": statements}).to_string();
        let trust =
            document(&json!([{"Effect": "Allow", "Principal": self.user("platform"), "Action": ["sts:AssumeRole"]}]));
        self.iam(&[("Action", "CreateRole"), ("RoleName", name), ("AssumeRolePolicyDocument", &trust)]).await;
        let policy = document(statements);
        let put = [("Action", "PutRolePolicy"), ("RoleName", name), ("PolicyName", "p"), ("PolicyDocument", &policy)];
        self.iam(&put).await;
        format!("arn:aws:iam::{}:role/{name}", self.account)
    }

    async fn iam(&self, form: &[(&str, &str)]) -> String {
        iam(&self.url, &self.admin, form).await
    }
}
