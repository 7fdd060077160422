package profile

// How samples come from a node's agent to the operator.
const (
	// SamplesPath is where the operator takes samples: one Sample as JSON, compressed with
	// gzip or not, in a POST with a token for SamplesAudience. Answers are
	//
	//	202  taken · 200 not wanted, for the reason in the body
	//	400, 413, 415, 422  never taken as it is
	//	421  this replica does not lead: ask again, for another one
	//	401, 403, 429, 503  not now
	SamplesPath = "/v1/samples"
	// SamplesAudience is what the token is for: one that is good for the API server is
	// not good here, and with ours nobody can ask the API server.
	SamplesAudience = "apparate"
	// SamplesPort is the name of the port of the operator's service.
	SamplesPort = "samples"
	// MaxSampleBody is the largest body as it is sent, in bytes.
	MaxSampleBody = 4 << 20
)
