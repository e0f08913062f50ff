#!/bin/sh
# Usage from a shell: kcat.sh HOST:PORT TENANT < events.jsonl
# One event a line, each with its tenant:
#   {"tenant":"acme","id":"1","source":"shell","type":"api","customer":"c1","time":"2026-03-10T12:00:00Z","properties":{"bytes":512}}
set -eu
bootstrap=$1 tenant=$2
exec kcat -P -b "$bootstrap" -t "${3:-usage.events}" -k "$tenant" -H "tenant=$tenant" \
    -X partitioner=murmur2_random -X enable.idempotence=true -X acks=all
