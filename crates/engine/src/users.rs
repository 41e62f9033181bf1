//! CREATE, ALTER and DROP USER, GRANT and REVOKE.

use planner::user_statement::{Right, SchemaRole, UserStatement};
use storage::{Role, UserChange, UserEntry};

use crate::{Answer, Result, Session};

impl Session {
    /// Carries a statement about users out.
    pub(crate) async fn change_users(&self, statement: &UserStatement) -> Result<Answer> {
        let database = self.engine().database();
        match statement {
            UserStatement::Create { user, password, is_admin, if_not_exists } => {
                self.require_admin("create users").await?;
                let password_hash = Some(self.engine().passwords().hash(password.reveal()).await?);
                let entry = UserEntry { password_hash, is_admin: *is_admin, ..UserEntry::default() };
                database.create_user(user, entry, *if_not_exists).await?;
                Ok(Answer::done("CREATE USER"))
            }
            UserStatement::SetPassword { user, password } => {
                if self.user() != Some(user.as_str()) {
                    self.require_admin("change other users").await?;
                }
                let hash = self.engine().passwords().hash(password.reveal()).await?;
                database.alter_user(user, UserChange::PasswordHash(hash)).await?;
                Ok(Answer::done("ALTER USER"))
            }
            UserStatement::SetAdmin { user, is_admin } => {
                self.require_admin("make users admins").await?;
                database.alter_user(user, UserChange::IsAdmin(*is_admin)).await?;
                Ok(Answer::done("ALTER USER"))
            }
            UserStatement::Drop { user, if_exists } => {
                self.require_admin("drop users").await?;
                database.drop_user(user, *if_exists).await?;
                Ok(Answer::done("DROP USER"))
            }
            UserStatement::Grant(Right { role, schema, user }) => {
                self.require_now(schema, Role::Admin).await?;
                database.grant(user, schema, stored(*role)).await?;
                Ok(Answer::done("GRANT"))
            }
            UserStatement::Revoke(Right { role, schema, user }) => {
                self.require_now(schema, Role::Admin).await?;
                database.revoke(user, schema, stored(*role)).await?;
                Ok(Answer::done("REVOKE"))
            }
        }
    }
}

fn stored(role: SchemaRole) -> Role {
    match role {
        SchemaRole::Read => Role::Read,
        SchemaRole::Write => Role::Write,
        SchemaRole::Admin => Role::Admin,
    }
}
