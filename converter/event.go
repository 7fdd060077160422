package converter

import "time"

// EventType is what an [Event] tells of.
type EventType string

// The types of events, in the order in which they happen. The fields that each
// has beside Time, Type, Image and Target are given in brackets.
const (
	// Started: the source was read, and work begins. [Layers, BytesInTotal: the
	// compressed size of all layers, Digest: the source's]
	Started EventType = "started"
	// LayerStarted: a layer is being downloaded and encoded. [Layer, LayerIndex,
	// Layers, BytesInTotal: the layer's size]
	LayerStarted EventType = "layer-started"
	// LayerProgress: at most five a second for each layer. [as LayerStarted;
	// BytesIn: downloaded, BytesOut: uploaded so far]. A layer that is tried
	// again begins at 0 again.
	LayerProgress EventType = "layer-progress"
	// LayerDone: the registry has the converted layer. [as LayerProgress;
	// BytesOut is 0 when it had it already; Digest: the new layer's]
	LayerDone EventType = "layer-done"
	// LayerReused: the layer was converted before. [Layer, LayerIndex, Layers,
	// BytesInTotal, Digest]
	LayerReused EventType = "layer-reused"
	// LayerCopied: the layer stays as it is, and cannot be started lazily.
	// [as LayerReused; Reason: why]
	LayerCopied EventType = "layer-copied"
	// LayerRetried: a layer failed for a passing reason and is tried again.
	// [Layer, LayerIndex, Layers, Error]
	LayerRetried EventType = "layer-retried"
	// ManifestPushed: a manifest is in the registry, without a name yet.
	// [Platform: empty for an index, Digest]
	ManifestPushed EventType = "manifest-pushed"
	// Tagged: the target is there. [Digest: the target's]
	Tagged EventType = "tagged"
	// ProfileCarried: the start-up profile of the image that the tag named before
	// is the new one's too. [Platform, Digest: the profile's manifest, Reason: how much of it]
	ProfileCarried EventType = "profile-carried"
	// ProfileLost: it could not be carried over; the image starts without, until
	// another is made. [Platform, Digest: the image's manifest, Error: why]
	ProfileLost EventType = "profile-lost"
	// ProfilePredicted: the image has a start-up profile that was told from what it
	// starts. [Platform, Digest: the profile's manifest, Reason: how much is in it]
	ProfilePredicted EventType = "profile-predicted"
	// UpToDate: there was nothing to do. [Digest: the target's]
	UpToDate EventType = "up-to-date"
	// Failed: the conversion ended without a result. [Reason: the fault's kind,
	// Error: what a person should read]
	Failed EventType = "failed"
)

// Event is one thing that happened; as JSON, one line of "convert --output json".
// Fields that an event does not have are left out.
type Event struct {
	// Time is when it happened, in UTC.
	Time time.Time `json:"time"`
	Type EventType `json:"type"`
	// Image and Target are the full names of source and target.
	Image  string `json:"image"`
	Target string `json:"target"`
	// Platform is "os/architecture[/variant]".
	Platform string `json:"platform,omitempty"`
	// Layer is the source layer's digest; LayerIndex counts from 1 to Layers.
	Layer      string `json:"layer,omitempty"`
	LayerIndex int    `json:"layerIndex,omitempty"`
	Layers     int    `json:"layers,omitempty"`
	// BytesIn of BytesInTotal compressed bytes came in, BytesOut went out.
	BytesIn      int64 `json:"bytesIn,omitempty"`
	BytesInTotal int64 `json:"bytesInTotal,omitempty"`
	BytesOut     int64 `json:"bytesOut,omitempty"`
	// Digest is that of what the event is about.
	Digest string `json:"digest,omitempty"`
	Reason string `json:"reason,omitempty"`
	Error  string `json:"error,omitempty"`
}

// progressInterval is the least time between two LayerProgress events of a layer.
const progressInterval = 200 * time.Millisecond

// emit completes an event and hands it to the caller.
func (j *job) emit(e Event) {
	if j.req.Progress == nil {
		return
	}
	j.eventMu.Lock()
	defer j.eventMu.Unlock()
	e.Time = time.Now().UTC()
	e.Image, e.Target = j.seen.Source, j.seen.Target
	j.req.Progress(e)
}
