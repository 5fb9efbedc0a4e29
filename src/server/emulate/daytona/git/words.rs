//! What git prints, as the vendor tells it.

use axum::response::Response;
use serde_json::{Value, json};

use super::super::refuse_as;
use crate::provider::CapturedOutput;

pub(super) fn text(bytes: impl AsRef<[u8]>) -> String {
    String::from_utf8_lossy(bytes.as_ref()).into_owned()
}

/// What git printed, or why it failed, as the vendor tells it.
pub(super) fn good(output: CapturedOutput) -> Result<Vec<u8>, Response> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = [&output.stderr, &output.stdout].map(text);
    let said =
        said.iter().map(|said| said.trim()).find(|said| !said.is_empty()).unwrap_or("git failed").to_owned();
    let known = FAILURES.iter().find(|(words, ..)| said.contains(words));
    let (status, name) = known.map_or((400, "BAD_REQUEST"), |(_, status, name)| (*status, *name));
    Err(refuse_as(status, name, said))
}

/// Words of git, the first that fit, and what the vendor calls such a failure.
const FAILURES: [(&str, u16, &str); 24] = [
    ("Authentication failed", 401, "GIT_AUTH_FAILED"),
    ("could not read Username", 401, "GIT_AUTH_FAILED"),
    ("could not read Password", 401, "GIT_AUTH_FAILED"),
    ("error: 403", 403, "FORBIDDEN"),
    ("[remote rejected]", 422, "GIT_REMOTE_REJECTED"),
    ("[rejected]", 409, "GIT_PUSH_REJECTED"),
    ("non-fast-forward", 409, "GIT_PUSH_REJECTED"),
    ("would be overwritten", 409, "GIT_DIRTY_WORKTREE"),
    ("Not possible to fast-forward", 409, "CONFLICT"),
    ("a branch named", 409, "GIT_BRANCH_EXISTS"),
    ("already exists", 409, "CONFLICT"),
    ("invalid reference", 404, "GIT_BRANCH_NOT_FOUND"),
    ("error: branch", 404, "GIT_BRANCH_NOT_FOUND"),
    ("Remote branch", 404, "GIT_BRANCH_NOT_FOUND"),
    ("not a git repository", 404, "GIT_REPO_NOT_FOUND"),
    ("does not appear to be a git repository", 404, "GIT_REPO_NOT_FOUND"),
    ("does not exist", 404, "GIT_REPO_NOT_FOUND"),
    ("cannot change to", 404, "GIT_REPO_NOT_FOUND"),
    ("not found", 404, "GIT_REPO_NOT_FOUND"),
    ("No such remote", 404, "NOT_FOUND"),
    ("unknown revision", 404, "NOT_FOUND"),
    ("did not match", 404, "NOT_FOUND"),
    ("Could not resolve host", 502, "GIT_TRANSPORT_FAILED"),
    ("Failed to connect", 502, "GIT_TRANSPORT_FAILED"),
];

/// The output of `git status --porcelain=v2 --branch -z` as the vendor tells it.
pub(super) fn status(printed: &[u8]) -> Value {
    let (mut branch, mut upstream) = (String::new(), String::new());
    let (mut ahead, mut behind) = (0, 0);
    let mut files = Vec::new();
    let mut lines = printed.split(|byte| *byte == 0).map(text);
    while let Some(line) = lines.next() {
        let Some((kind, rest)) = line.split_once(' ') else { continue };
        // How many words stand before the path.
        let words = match kind {
            "#" => {
                match rest.split_once(' ') {
                    Some(("branch.head", name)) => branch = name.to_owned(),
                    Some(("branch.upstream", name)) => upstream = name.to_owned(),
                    Some(("branch.ab", counts)) => {
                        let mut counts =
                            counts.split(' ').map(|count| count[1..].parse::<u64>().unwrap_or(0));
                        (ahead, behind) = (counts.next().unwrap_or(0), counts.next().unwrap_or(0));
                    }
                    _ => {}
                }
                continue;
            }
            "1" => 7,
            "2" => 8,
            "u" => 9,
            _ => 0,
        };
        let name = rest.splitn(words + 1, ' ').last().unwrap_or_default();
        let mut codes = rest.chars();
        let (staging, worktree) = match kind {
            "?" => ("Untracked", "Untracked"),
            "u" => ("Updated but unmerged", "Updated but unmerged"),
            _ => (change(codes.next()), change(codes.next())),
        };
        // The older name of what was renamed is a line of its own.
        let extra = if kind == "2" { lines.next().unwrap_or_default() } else { String::new() };
        files.push(json!({ "name": name, "extra": extra, "staging": staging, "worktree": worktree }));
    }
    let detached = branch == "(detached)";
    json!({
        "currentBranch": if detached { "HEAD" } else { &branch },
        "detached": detached,
        "fileStatus": files,
        "branchPublished": !upstream.is_empty(),
        "upstream": upstream,
        "ahead": ahead,
        "behind": behind,
    })
}

fn change(code: Option<char>) -> &'static str {
    match code {
        Some('M' | 'T') => "Modified",
        Some('A') => "Added",
        Some('D') => "Deleted",
        Some('R') => "Renamed",
        Some('C') => "Copied",
        _ => "Unmodified",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_with_odd_names() {
        let printed = "# branch.oid 00\0# branch.head main\0# branch.upstream origin/main\0# branch.ab +2 -1\0\
                       1 M. N... 100644 100644 100644 aa bb a b.txt\0\
                       2 R. N... 100644 100644 100644 aa bb R100 new name\0old name\0\
                       u UU N... 100644 100644 100644 100644 aa bb cc both\0? new\nline\0";
        let seen = status(printed.as_bytes());
        assert_eq!(
            (&seen["currentBranch"], &seen["ahead"], &seen["behind"]),
            (&json!("main"), &json!(2), &json!(1))
        );
        let file = |name: &str, extra: &str, staging: &str, worktree: &str| json!({ "name": name, "extra": extra, "staging": staging, "worktree": worktree });
        let unmerged = "Updated but unmerged";
        assert_eq!(
            seen["fileStatus"],
            json!([
                file("a b.txt", "", "Modified", "Unmodified"),
                file("new name", "old name", "Renamed", "Unmodified"),
                file("both", "", unmerged, unmerged),
                file("new\nline", "", "Untracked", "Untracked"),
            ])
        );
        assert_eq!(status(b"# branch.head (detached)\0")["currentBranch"], "HEAD");
    }
}
