//go:build !amd64

package undump

import (
	"errors"
	"runtime"
)

// errArchitecture says that this package does not know the registers of this architecture.
var errArchitecture = errors.New("the executor cannot make another process not dumpable on " + runtime.GOARCH)

func undump(int) error { return errArchitecture }
