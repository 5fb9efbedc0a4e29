# repository.sh PATH URL REF|- DEPTH|- COMMIT|-: brings a working copy to a reference and prints the commit. COMMIT is where it was brought to the
# last time. Nothing that is only here is ever lost: work that is in the way is an error. The token, if any, is in POCKETENV_GIT_TOKEN.
exec 3>&1 1>&2
pe_path=$1 pe_url=$2 pe_ref=$3 pe_depth=$4 pe_last=$5
command -v git >/dev/null 2>&1 || pe_fail 76 "git is not installed in the sandbox; the preset git-tools installs it"

export GIT_TERMINAL_PROMPT=0 GIT_SSH_COMMAND="${GIT_SSH_COMMAND:-ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new}"
if [ -n "${POCKETENV_GIT_TOKEN-}" ]; then
  pe_dir=$(mktemp -d) || exit 1
  trap 'rm -rf "$pe_dir"' EXIT
  trap 'exit 143' TERM INT HUP
  # The script has no secret in it; git hands it the environment.
  printf '%s\n' '#!/bin/sh' 'case $1 in Username*) echo x-access-token ;; *) printf "%s\n" "$POCKETENV_GIT_TOKEN" ;; esac' >"$pe_dir/askpass" &&
    chmod 700 "$pe_dir/askpass" || exit 1
  export GIT_ASKPASS="$pe_dir/askpass"
  # No helper may be asked first, and none may keep what it is given.
  pe_quiet='-c credential.helper='
fi
pe_git() {
  git ${pe_quiet-} -C "$pe_path" "$@"
}
pe_do() { # WHAT COMMAND…
  pe_what=$1
  shift
  "$@" || pe_fail 77 "$pe_what failed"
}

if [ ! -e "$pe_path/.git" ]; then
  if [ -d "$pe_path" ] && [ -n "$(ls -A -- "$pe_path")" ]; then
    pe_fail 78 "$pe_path is not empty and not a git repository"
  fi
  mkdir -p -- "$pe_path" || pe_fail 77 "cannot make $pe_path"
  pe_do "git init" git init -q -- "$pe_path"
fi
if pe_old=$(pe_git config --get remote.origin.url); then
  [ "$pe_old" = "$pe_url" ] || pe_do "git remote set-url" pe_git remote set-url -- origin "$pe_url"
else
  pe_do "git remote add" pe_git remote add -- origin "$pe_url"
fi

# What kind of name the reference is, by the remote's word.
pe_branch=
if [ "$pe_ref" = - ]; then
  pe_answer=$(pe_git ls-remote --symref -- origin HEAD) || pe_fail 77 "cannot read $pe_url"
  pe_branch=$(printf '%s\n' "$pe_answer" | sed -n 's|^ref: refs/heads/\([^	]*\)	HEAD$|\1|p')
  [ -n "$pe_branch" ] || pe_fail 77 "$pe_url has no default branch"
  pe_kind=branch
else
  pe_answer=$(pe_git ls-remote -- origin "refs/heads/$pe_ref" "refs/tags/$pe_ref") || pe_fail 77 "cannot read $pe_url"
  case $pe_answer in
  *"	refs/heads/$pe_ref"*) pe_kind=branch pe_branch=$pe_ref ;;
  *"	refs/tags/$pe_ref"*) pe_kind=tag ;;
  *) pe_kind=commit ;;
  esac
fi

set --
[ "$pe_depth" = - ] || set -- --depth "$pe_depth"
case $pe_kind in
branch)
  [ "$pe_depth" != - ] || pe_do "git fetch" pe_git fetch -q --tags -- origin
  pe_do "git fetch" pe_git fetch -q "$@" -- origin "+refs/heads/$pe_branch:refs/remotes/origin/$pe_branch"
  pe_target=$(pe_git rev-parse -q --verify "refs/remotes/origin/$pe_branch^{commit}")
  ;;
tag)
  pe_do "git fetch" pe_git fetch -q "$@" -- origin "+refs/tags/$pe_ref:refs/tags/$pe_ref"
  pe_target=$(pe_git rev-parse -q --verify "refs/tags/$pe_ref^{commit}")
  ;;
commit)
  # Not every server gives a commit by its name; then everything is fetched.
  pe_git fetch -q "$@" -- origin "$pe_ref" 2>/dev/null || pe_do "git fetch" pe_git fetch -q --tags -- origin
  pe_target=$(pe_git rev-parse -q --verify "$pe_ref^{commit}")
  ;;
esac
[ -n "$pe_target" ] || pe_fail 79 "$pe_url has no branch, tag or commit $pe_ref"

pe_head=$(pe_git rev-parse -q --verify 'HEAD^{commit}')
pe_current=$(pe_git symbolic-ref -q --short HEAD)
if [ -n "$pe_head" ]; then
  # Work on no branch that nothing else leads to.
  if [ -z "$pe_current" ] && [ "$pe_head" != "$pe_last" ] && [ "$pe_head" != "$pe_target" ] &&
    [ -z "$(pe_git for-each-ref --count=1 --contains "$pe_head")" ]; then
    pe_fail 78 "$pe_path has commits on no branch; make a branch of them first"
  fi
  if [ "$pe_head" != "$pe_target" ] && [ -n "$(pe_git status --porcelain --untracked-files=no)" ]; then
    pe_fail 78 "$pe_path has changes that are not committed; commit, stash or discard them first"
  fi
fi
if [ -z "$pe_branch" ]; then
  [ "$pe_head" = "$pe_target" ] && [ -z "$pe_current" ] || pe_do "git checkout" pe_git checkout -q --detach "$pe_target" --
elif pe_local=$(pe_git rev-parse -q --verify "refs/heads/$pe_branch^{commit}"); then
  [ "$pe_current" = "$pe_branch" ] || pe_do "git checkout" pe_git checkout -q "$pe_branch" --
  # A branch that is ahead keeps what it has; one that has gone another way is the user's to join.
  if [ "$pe_local" != "$pe_target" ] && ! pe_git merge-base --is-ancestor "$pe_target" "$pe_local"; then
    pe_git merge -q --ff-only "$pe_target" || pe_fail 78 "branch $pe_branch of $pe_path has commits that origin does not have, and origin has others"
  fi
else
  pe_do "git checkout" pe_git checkout -q -b "$pe_branch" --track "origin/$pe_branch" --
fi
pe_git rev-parse HEAD >&3
