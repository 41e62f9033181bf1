//! Expressions and predicates: each is written as SQL and evaluated by the model, with SQL's three-valued logic.

use std::cmp::Ordering;

use crate::model::Column;
use crate::random::Random;
use crate::value::{Kind, Value};

/// How the columns of both sides are called in a statement.
pub struct Scope {
    target: Vec<String>,
    source: Vec<String>,
}

impl Scope {
    /// `target`: the alias or name of the table, empty for bare columns. `source`: the names of the other side.
    pub fn new(columns: &[Column], target: &str, source: &[String]) -> Self {
        let dot = if target.is_empty() { "" } else { "." };
        Self {
            target: columns.iter().map(|column| format!("{target}{dot}{}", column.name)).collect(),
            source: source.to_vec(),
        }
    }

    pub fn bare(columns: &[Column]) -> Self {
        Self::new(columns, "", &[])
    }
}

/// An expression over a row of the target and, in some statements, a row of the source.
#[derive(Clone, Debug)]
pub enum Expr {
    Constant(Value),
    /// The word DEFAULT, and what it stands for.
    Default(Value),
    /// A column of the target.
    Target(usize),
    /// A column of the source.
    Source(usize),
    /// Integer addition.
    Plus(Box<Expr>, i64),
    /// `x * 0.5 + 1.5`: stays bounded and is the same bits everywhere.
    Blend(Box<Expr>),
    /// The first letters and a `z`: stays bounded.
    Mark(Box<Expr>),
}

impl Expr {
    /// A random expression that can be assigned to a column. `same`: columns of the target of its type.
    /// `source`: a column of the source of its type.
    pub fn assigned(random: &mut Random, kind: Kind, same: &[usize], source: Option<usize>) -> Self {
        if let Some(at) = source
            && random.chance(60)
        {
            return Self::Source(at);
        }
        if same.is_empty() || random.chance(40) {
            return Self::Constant(Value::any(random, kind));
        }
        let column = Self::Target(*random.pick(same));
        match kind {
            _ if random.chance(25) => column,
            Kind::BigInt | Kind::Int => Self::Plus(Box::new(column), random.between(1, 4)),
            Kind::Double => Self::Blend(Box::new(column)),
            Kind::Text => Self::Mark(Box::new(column)),
            Kind::Vector => column,
        }
    }

    pub fn sql(&self, scope: &Scope) -> String {
        match self {
            Self::Constant(value) => value.to_string(),
            Self::Default(_) => "DEFAULT".to_owned(),
            Self::Target(at) => scope.target[*at].clone(),
            Self::Source(at) => scope.source[*at].clone(),
            Self::Plus(inner, more) => format!("{} + {more}", inner.sql(scope)),
            Self::Blend(inner) => format!("{} * 0.5 + 1.5", inner.sql(scope)),
            Self::Mark(inner) => format!("left({}, 5) || 'z'", inner.sql(scope)),
        }
    }

    pub fn eval(&self, target: &[Value], source: &[Value]) -> Value {
        match self {
            Self::Constant(value) | Self::Default(value) => value.clone(),
            Self::Target(at) => target[*at].clone(),
            Self::Source(at) => source[*at].clone(),
            Self::Plus(inner, more) => match inner.eval(target, source) {
                Value::Int(value) => Value::Int(value + more),
                _ => Value::Null,
            },
            Self::Blend(inner) => match inner.eval(target, source) {
                Value::Double(value) => Value::Double(value * 0.5 + 1.5),
                _ => Value::Null,
            },
            Self::Mark(inner) => match inner.eval(target, source) {
                Value::Text(text) => Value::Text(text.chars().take(5).chain(['z']).collect()),
                _ => Value::Null,
            },
        }
    }
}

/// A condition.
#[derive(Clone, Debug)]
pub enum Predicate {
    Always,
    /// Two expressions and `=`, `<>`, `<`, `<=`, `>` or `>=`.
    Compare(Expr, &'static str, Expr),
    IsNull(Expr),
    IsNotNull(Expr),
    Between(Expr, i64, i64),
    In(Expr, Vec<Value>),
    /// `expr % modulus = rest`.
    Modulo(Expr, i64, i64),
    /// Begins with a letter that LIKE gives no meaning.
    Begins(Expr, char),
    /// `expr [NOT] IN (subquery)`: the text of the subquery and what it holds, without NULL where negated.
    Among {
        expr: Expr,
        query: String,
        values: Vec<Value>,
        is_negated: bool,
    },
    And(Box<Predicate>, Box<Predicate>),
    Or(Box<Predicate>, Box<Predicate>),
    Not(Box<Predicate>),
}

impl Predicate {
    /// A random condition on the columns of a table whose first column is its key, or would be.
    pub fn random(random: &mut Random, columns: &[Column], depth: usize) -> Self {
        if depth > 0 && random.chance(35) {
            let one = Box::new(Self::random(random, columns, depth - 1));
            let two = Box::new(Self::random(random, columns, depth - 1));
            return match random.below(3) {
                0 => Self::And(one, two),
                1 => Self::Or(one, two),
                _ => Self::Not(one),
            };
        }
        if random.chance(4) {
            return Self::Always;
        }
        let at = random.below(columns.len());
        let (expr, kind) = (Expr::Target(at), columns[at].kind);
        match random.below(6) {
            0 => Self::IsNull(expr),
            1 => Self::IsNotNull(expr),
            _ => match kind {
                Kind::BigInt | Kind::Int => Self::of_integer(random, expr, kind),
                Kind::Double => {
                    let operator = *random.pick(&["<", "<=", ">", ">=", "=", "<>"]);
                    Self::Compare(expr, operator, Expr::Constant(Value::some(random, kind)))
                }
                Kind::Text if random.chance(50) => Self::Begins(expr, *random.pick(&['a', 'b', 'c', 'Q', 'ü'])),
                Kind::Text => {
                    let operator = *random.pick(&["=", "<>"]);
                    Self::Compare(expr, operator, Expr::Constant(Value::some(random, kind)))
                }
                Kind::Vector => Self::IsNotNull(expr),
            },
        }
    }

    fn of_integer(random: &mut Random, expr: Expr, kind: Kind) -> Self {
        match random.below(4) {
            0 => {
                let low = random.between(0, 900);
                Self::Between(expr, low, low + random.between(1, 100))
            }
            1 => Self::In(expr, (0..random.between(1, 6)).map(|_| Value::some(random, kind)).collect()),
            2 => {
                let modulus = random.between(2, 8);
                Self::Modulo(expr, modulus, random.between(0, modulus))
            }
            _ => {
                let operator = *random.pick(&["=", "<>", "<", ">="]);
                Self::Compare(expr, operator, Expr::Constant(Value::some(random, kind)))
            }
        }
    }

    pub fn sql(&self, scope: &Scope) -> String {
        match self {
            Self::Always => "true".to_owned(),
            Self::Compare(one, operator, two) => format!("{} {operator} {}", one.sql(scope), two.sql(scope)),
            Self::IsNull(expr) => format!("{} IS NULL", expr.sql(scope)),
            Self::IsNotNull(expr) => format!("{} IS NOT NULL", expr.sql(scope)),
            Self::Between(expr, low, high) => format!("{} BETWEEN {low} AND {high}", expr.sql(scope)),
            Self::In(expr, values) => format!("{} IN ({})", expr.sql(scope), listed(values)),
            Self::Modulo(expr, modulus, rest) => format!("{} % {modulus} = {rest}", expr.sql(scope)),
            Self::Begins(expr, letter) => format!("{} LIKE '{letter}%'", expr.sql(scope)),
            Self::Among { expr, query, is_negated, .. } => {
                format!("{} {}IN ({query})", expr.sql(scope), if *is_negated { "NOT " } else { "" })
            }
            Self::And(one, two) => format!("({} AND {})", one.sql(scope), two.sql(scope)),
            Self::Or(one, two) => format!("({} OR {})", one.sql(scope), two.sql(scope)),
            Self::Not(one) => format!("NOT ({})", one.sql(scope)),
        }
    }

    /// Whether a row is meant: unknown is no.
    pub fn holds(&self, target: &[Value], source: &[Value]) -> bool {
        self.eval(target, source) == Some(true)
    }

    fn eval(&self, target: &[Value], source: &[Value]) -> Option<bool> {
        let value = |expr: &Expr| expr.eval(target, source);
        match self {
            Self::Always => Some(true),
            Self::Compare(one, operator, two) => compared(&value(one), operator, &value(two)),
            Self::IsNull(expr) => Some(value(expr).is_null()),
            Self::IsNotNull(expr) => Some(!value(expr).is_null()),
            Self::Between(expr, low, high) => value(expr).int().map(|value| (*low..=*high).contains(&value)),
            Self::In(expr, values) => among(&value(expr), values),
            Self::Modulo(expr, modulus, rest) => value(expr).int().map(|value| value % modulus == *rest),
            Self::Begins(expr, letter) => match value(expr) {
                Value::Text(text) => Some(text.starts_with(*letter)),
                _ => None,
            },
            Self::Among { expr, values, is_negated, .. } => {
                among(&value(expr), values).map(|found| found != *is_negated)
            }
            Self::And(one, two) => match (one.eval(target, source), two.eval(target, source)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Self::Or(one, two) => match (one.eval(target, source), two.eval(target, source)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Self::Not(one) => one.eval(target, source).map(|held| !held),
        }
    }
}

/// Values as SQL lists them.
pub fn listed(values: &[Value]) -> String {
    values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")
}

fn among(value: &Value, values: &[Value]) -> Option<bool> {
    match value {
        _ if values.is_empty() => Some(false),
        Value::Null => None,
        value if values.contains(value) => Some(true),
        _ if values.iter().any(Value::is_null) => None,
        _ => Some(false),
    }
}

fn compared(one: &Value, operator: &str, two: &Value) -> Option<bool> {
    let order = match (one, two) {
        (Value::Null, _) | (_, Value::Null) => return None,
        (Value::Double(one), Value::Double(two)) => one.partial_cmp(two)?,
        (one, two) => one.cmp(two),
    };
    Some(match operator {
        "=" => order == Ordering::Equal,
        "<>" => order != Ordering::Equal,
        "<" => order == Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    })
}
