# launch.sh DIR PATH ARGV…: becomes the service's process, after it wrote down who that is.
pe_dir=$1 pe_path=$2
shift 2
pe_start_of $$
pe_put "$pe_dir/child" $$ "$pe_start"
# Whoever stops a service looks for the child after making this file.
[ ! -e "$pe_dir/stopping" ] || exit 0
PATH=$pe_path
exec "$@"
