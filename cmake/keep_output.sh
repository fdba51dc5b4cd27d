#!/bin/sh
# keep_output.sh OBJECT COMMAND...: runs a compiler; what it says goes into OBJECT.log too.
object=$1
shift
"$@" >"$object.log" 2>&1
status=$?
cat "$object.log" >&2
exit $status
