// Package profile makes start-up profiles of what nodes say that starts read.
//
//	node's agent ── POST, token ─► Receiver ─ Gate ─► Keeper ─► Registries ─► a profile beside the image
//	                               (who, how often)   (which,   (whose account, converter/profile)
//	                                                   when)
//
// A node that was taken over may send what it likes: samples only ever choose among the
// chunks that the image has, within the budget of a pack, and other nodes hash what they
// get. The worst that a bad sample does is a profile that does not help; and one node's
// samples are outvoted by those of others.
package profile
