package wiring

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheck(t *testing.T) {
	type dependencies struct {
		Read       func()
		Write      func()
		Name       string
		Namespaces []string `wiring:"optional"`
	}
	all := dependencies{Read: func() {}, Write: func() {}, Name: "here"}
	require.NoError(t, Check("part", all))
	require.EqualError(t, Check("part", dependencies{Read: func() {}}), "making the part: Write, Name missing")
}
