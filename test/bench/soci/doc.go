// Package soci pins the commands of SOCI snapshotter, which the benchmark starts as
// a peer. It is a module of its own, so that the peer is never a dependency of ours.
package soci
