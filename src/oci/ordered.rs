//! JSON whose fields keep their order, for what people read and compare with runc's.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

pub enum Json {
    Object(Vec<(String, Json)>),
    Array(Vec<Json>),
    Text(String),
    Number(i128),
    Bool(bool),
    Null,
}

impl Json {
    pub fn object<const N: usize>(fields: [(&str, Json); N]) -> Json {
        Json::fields(fields.into())
    }

    pub fn fields(fields: Vec<(&str, Json)>) -> Json {
        Json::Object(fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect())
    }

    pub fn texts<'a>(items: impl IntoIterator<Item = &'a str>) -> Json {
        Json::Array(items.into_iter().map(Json::from).collect())
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::Text(text.to_string())
    }
}

impl From<bool> for Json {
    fn from(b: bool) -> Json {
        Json::Bool(b)
    }
}

macro_rules! numbers {
    ($($t:ty)*) => {$(
        impl From<$t> for Json {
            fn from(n: $t) -> Json {
                Json::Number(n.into())
            }
        }
    )*};
}
numbers!(i32 i64 u32 u64);

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Object(fields) => {
                let mut map = to.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
            Json::Array(items) => {
                let mut list = to.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(item)?;
                }
                list.end()
            }
            Json::Text(text) => to.serialize_str(text),
            Json::Number(n) => match (u64::try_from(*n), i64::try_from(*n)) {
                (Ok(n), _) => to.serialize_u64(n),
                (_, Ok(n)) => to.serialize_i64(n),
                _ => to.serialize_i128(*n),
            },
            Json::Bool(b) => to.serialize_bool(*b),
            Json::Null => to.serialize_unit(),
        }
    }
}
