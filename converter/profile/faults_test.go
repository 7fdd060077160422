package profile_test

import (
	"testing"

	testregistry "github.com/apparate/apparate/test/registry"
)

func newFaultyLab(t *testing.T) (*lab, *testregistry.Registry) {
	r := testregistry.New(t)
	return newLabAt(t, r.Host()), r
}

func bodyFaults() []testregistry.Fault {
	return []testregistry.Fault{
		testregistry.ShortBody, testregistry.CutOff, testregistry.FlippedByte, testregistry.WrongRange, testregistry.ServerError,
	}
}
