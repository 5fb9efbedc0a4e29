# synced.sh TO KEY: prints the record of directory TO: its state, then each part after a line with its length in bytes. What interrupted changes
# left is swept away; a bundle that is being written at this moment is not.
pe_record=$pe_var/files/$2
for pe_left in "$1"/.pocketenv-sync-*; do
  [ ! -d "$pe_left" ] || rm -rf -- "$pe_left"
done
if [ ! -r "$pe_record.rec" ]; then echo none; exit 0; fi
IFS='	' read -r pe_kind pe_digest pe_rest <"$pe_record.rec"
if [ "$pe_kind" != T ]; then echo none; exit 0; fi
if [ "$pe_digest" = - ]; then echo pending; else echo ok; fi
for pe_part in names modes sums odd links; do
  [ -r "$pe_record.$pe_part" ] || continue
  printf '%s %s\n' "$pe_part" "$(wc -c <"$pe_record.$pe_part")"
  cat "$pe_record.$pe_part"
done
