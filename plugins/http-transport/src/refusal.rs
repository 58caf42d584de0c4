//! Errors in the words of services: in which of the usual forms they come, and whether waiting mends them.

use serde_json::Value;

/// Objects around an error deeper than this are not looked into.
const DEPTH: usize = 4;

/// An error that trying again does not mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the reply, or the one that its body names; 500 for a request at which the service fails every
    /// time, while it serves others.
    pub status: u16,
    /// Cause, as far as it can be told.
    pub reason: Reason,
    /// Words of the service, without the key.
    pub details: String,
}

/// Causes of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No money, credit or quota is left, or the account is closed.
    Payment,
    /// The key is missing, wrong, or not good for this.
    Key,
    /// Something in the request.
    Request,
}

/// An error in a reply's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorBody {
    /// The status that it names.
    pub(crate) status: Option<u16>,
    /// Everything that it says: codes, types and messages.
    words: String,
}

/// Words that mean a lack of money whatever else is said.
const PAYMENT: [&str; 46] = [
    "insufficient_quota",
    "insufficient_user_quota",
    "billing_hard_limit",
    "billing hard limit",
    "billing_not_active",
    "billing_disabled",
    "billing_error",
    "billing to be enabled",
    "account is not active",
    "account is suspended",
    "account has been suspended",
    "account suspended",
    "account_deactivated",
    "account deactivated",
    "account has been deactivated",
    "account_suspended",
    "current status: suspended",
    "credit balance is too low",
    "credit balance too low",
    "insufficient credit",
    "insufficient_credit",
    "insufficient balance",
    "insufficient_balance",
    "insufficient funds",
    "insufficient account balance",
    "balance is insufficient",
    "balance is not enough",
    "balance not enough",
    "not enough credit",
    "not enough balance",
    "out of credits",
    "no credits",
    "run out of credits",
    "all available credits",
    "credit_limit",
    "credit limit exceeded",
    "credits exhausted",
    "included credits",
    "spending limit",
    "spend limit",
    "budget_exceeded",
    "budget has been exceeded",
    "payment required",
    "payment_required",
    "arrearage",
    "accountoverdue",
];
/// The same in Chinese: the balance or the allowance is used up, there is a debt.
const PAYMENT_IN_CHINESE: [&str; 4] = ["余额不足", "额度不足", "额度已用尽", "欠费"];
/// Words that mean a lack of money, unless the service says when to come back.
const QUOTA: [&str; 6] = [
    "exceeded your current quota",
    "exceeded_current_quota",
    "quota exceeded",
    "quota_exceeded",
    "out of call volume quota",
    "monthly limit",
];
/// Words that say so.
const COMES_BACK: [&str; 8] = [
    "retry in",
    "try again in",
    "retrydelay",
    "retry after",
    "per minute",
    "per_minute",
    "perminute",
    "per second",
];
/// Words about keys.
const KEY: [&str; 22] = [
    "invalid_api_key",
    "invalid api key",
    "invalid api-key",
    "invalid api token",
    "invalid x-api-key",
    "incorrect api key",
    "api key not valid",
    "api_key_invalid",
    "api key is not valid",
    "api key is invalid",
    "api key expired",
    "api key has expired",
    "api key is required",
    "missing api key",
    "no api key",
    "key limit exceeded",
    "invalid subscription key",
    "authentication_error",
    "authentication error",
    "authentication fails",
    "unauthenticated",
    "unauthorized",
];
/// Words of services that have too much to do.
const OVERLOAD: [&str; 9] = [
    "rate_limit",
    "rate limit",
    "ratelimit",
    "too many requests",
    "overloaded",
    "resource_exhausted",
    "throttl",
    "over capacity",
    "capacity exceeded",
];

/// Words for a request that is wrong.
const WRONG_REQUEST: [&str; 5] =
    ["invalid_request", "bad_request", "badrequest", "invalid_argument", "not_found"];

impl ErrorBody {
    /// The error in a body, if it holds one in a form that is known: `error` as an object or a text, `errors`,
    /// `detail`, `message` with a `code`, `base_resp`, or one of these in a list or a choice.
    pub(crate) fn of(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let mut found = Self { status: None, words: String::new() };
        match error_in(&body) {
            Some(error) => {
                found.add("", error, DEPTH);
                // A code may stand beside the error.
                if let (Value::Object(fields), None) = (&body, found.status) {
                    found.status = ["status", "code", "statusCode", "status_code"]
                        .iter()
                        .find_map(|name| fields.get(*name).and_then(status_of));
                }
                Some(found)
            }
            None => None,
        }
    }

    /// An error whose body is of no known form.
    pub(crate) fn of_text(text: &str) -> Self {
        Self { status: None, words: text.to_lowercase() }
    }

    fn add(&mut self, name: &str, value: &Value, depth: usize) {
        match value {
            Value::Object(fields) if depth > 0 => {
                // Some repeat the request, in which anything may stand.
                let own = fields.iter().filter(|(name, _)| *name != "input");
                own.for_each(|(name, value)| self.add(name, value, depth - 1));
            }
            Value::Array(list) if depth > 0 => {
                list.iter().for_each(|value| self.add(name, value, depth - 1));
            }
            Value::String(_) | Value::Number(_) => {
                if self.status.is_none()
                    && ["code", "status", "status_code", "statusCode"].contains(&name)
                {
                    self.status = status_of(value);
                }
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                // The name may be what tells: Google has `retryDelay`.
                self.words.push_str(&format!("{name} {text}\n").to_lowercase());
            }
            _ => {}
        }
    }

    /// The cause of a refusal with this status; `comes_back` is whether a header says when to try again.
    pub(crate) fn reason(&self, status: Option<u16>, comes_back: bool) -> Reason {
        let holds = |words: &[&str]| words.iter().any(|word| self.words.contains(word));
        let waits = comes_back || holds(&COMES_BACK);
        if status == Some(402)
            || holds(&PAYMENT)
            || holds(&PAYMENT_IN_CHINESE)
            || (holds(&QUOTA) && !waits)
        {
            Reason::Payment
        } else if status == Some(401) || holds(&KEY) {
            Reason::Key
        } else {
            Reason::Request
        }
    }

    /// The status that an error without one would have.
    pub(crate) fn usual_status(&self) -> Option<u16> {
        let holds = |words: &[&str]| words.iter().any(|word| self.words.contains(word));
        match self.reason(None, false) {
            Reason::Payment => Some(402),
            Reason::Key => Some(401),
            Reason::Request if holds(&OVERLOAD) => Some(429),
            Reason::Request if holds(&WRONG_REQUEST) => Some(400),
            Reason::Request => None,
        }
    }
}

/// The part of a body that holds the error.
fn error_in(body: &Value) -> Option<&Value> {
    match body {
        Value::Array(list) => list.first().and_then(error_in),
        Value::Object(fields) => {
            let is_said = |value: &&Value| !matches!(value, Value::Null | Value::Bool(_));
            let named = ["error", "errors", "detail", "base_resp", "error_msg", "fault"];
            let named = named.iter().find_map(|name| fields.get(*name).filter(is_said));
            let is_error = ["message", "msg"]
                .iter()
                .any(|name| fields.get(*name).is_some_and(Value::is_string));
            let choice = || fields.get("choices")?.get(0)?.get("error").filter(is_said);
            named.or_else(choice).or_else(|| is_error.then_some(body))
        }
        _ => None,
    }
}

/// The status that a code stands for: a number or its digits.
fn status_of(code: &Value) -> Option<u16> {
    let number = code.as_u64().or_else(|| code.as_str()?.trim().parse().ok())?;
    u16::try_from(number).ok().filter(|status| (400..600).contains(status))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reason(status: Option<u16>, body: &Value) -> Reason {
        ErrorBody::of(body.to_string().as_bytes()).unwrap().reason(status, false)
    }

    #[test]
    fn a_lack_of_money_is_known_in_the_words_of_every_service() {
        for (status, body) in [
            (
                429,
                json!({"error": {"message": "You exceeded your current quota, please check your plan and billing details.", "type": "insufficient_quota", "param": null, "code": "insufficient_quota"}}),
            ),
            (
                429,
                json!({"error": {"message": "Billing hard limit has been reached", "code": "billing_hard_limit_reached"}}),
            ),
            (
                400,
                json!({"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the Anthropic API."}}),
            ),
            (402, json!({"error": {"message": "Insufficient Balance", "type": "unknown_error"}})),
            (402, json!({"message": "whatever"})),
            (
                403,
                json!({"code": 30001, "message": "Sorry, your account balance is insufficient", "data": null}),
            ),
            (
                403,
                json!({"code": "no permission", "error": "Your team has either used all available credits or reached its monthly spending limit."}),
            ),
            (
                429,
                json!({"error": {"type": "exceeded_current_quota_error", "message": "Your account is not active, current status: suspended"}}),
            ),
            (429, json!({"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}})),
            (
                400,
                json!({"error": {"type": "budget_exceeded", "message": "Budget has been exceeded! Current cost: 1.1, Max budget: 1.0"}}),
            ),
            (
                400,
                json!({"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."}),
            ),
            (
                200,
                json!({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, "choices": null}),
            ),
            (500, json!({"error": {"code": "insufficient_user_quota", "message": "用户额度不足"}})),
            (
                429,
                json!([{"error": {"status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota."}}]),
            ),
        ] {
            assert_eq!(reason(Some(status), &body), Reason::Payment, "{status} {body}");
        }
        // These pass.
        for body in [
            json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota. Please retry in 12.2s.", "details": [{"retryDelay": "12s"}]}}),
            json!({"error": {"code": "rate_limit_exceeded", "message": "Rate limit reached on tokens per minute."}}),
            json!({"message": "Requests rate limit exceeded"}),
        ] {
            assert_eq!(reason(Some(429), &body), Reason::Request, "{body}");
            let error = ErrorBody::of(body.to_string().as_bytes()).unwrap();
            assert_eq!(error.usual_status(), Some(429), "{body}");
        }
    }

    #[test]
    fn keys_are_known_at_any_status() {
        for (status, body) in [
            (401, json!({"error": "whatever"})),
            (
                400,
                json!([{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT"}}]),
            ),
            (403, json!({"error": {"message": "Key limit exceeded (total limit)", "code": 403}})),
            (
                200,
                json!({"error": {"type": "authentication_error", "message": "invalid x-api-key"}}),
            ),
            (500, json!({"detail": "Authentication Error, Invalid proxy server token passed"})),
            (
                200,
                json!({"success": false, "errors": [{"code": 10000, "message": "Authentication error"}]}),
            ),
        ] {
            assert_eq!(reason(Some(status), &body), Reason::Key, "{status} {body}");
        }
    }

    #[test]
    fn the_status_of_an_error_is_found_in_its_body() {
        for (body, status) in [
            (
                json!({"error": {"code": 402, "message": "insufficient credits"}, "choices": null}),
                Some(402),
            ),
            (json!({"error": {"code": "502", "message": "bad gateway"}}), Some(502)),
            (json!({"object": "error", "message": "no", "code": 400}), Some(400)),
            (json!({"error": "no", "status": 503}), Some(503)),
            (
                json!({"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "x"}}]}),
                Some(502),
            ),
            (json!({"error": "overloaded"}), None),
            (json!({"error": {"code": 40001, "message": "no"}}), None),
        ] {
            let error = ErrorBody::of(body.to_string().as_bytes()).unwrap();
            assert_eq!(error.status, status, "{body}");
        }
        for body in
            ["{}", "[]", "1", "", "{\"error\": null}", "{\"choices\": []}", "{\"rewards\": [1]}"]
        {
            assert_eq!(ErrorBody::of(body.as_bytes()), None, "{body}");
        }
    }
}
