package procstat

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	line := "12 (a) R 1 (x)) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1 1"
	s, err := parse(12, []byte(line))
	require.NoError(t, err)
	assert.Equal(t, Stat{PID: 12, Parent: 7, State: 'S', Threads: 1, StartTime: 4711}, s)
	assert.False(t, s.Dead())
	for threads, dead := range map[string]bool{"0": true, "1": true, "2": false} {
		s, err := parse(12, []byte(strings.Replace(strings.Replace(line, ") S", ") Z", 1), " 20 0 1 ", " 20 0 "+threads+" ", 1)))
		require.NoError(t, err)
		assert.True(t, s.Zombie())
		assert.Equal(t, dead, s.Dead(), "%s threads", threads)
	}
	for _, bad := range []string{"", "12 (a", "12 (a) S 7", "12 (a) S x " + strings.Repeat("0 ", 20), strings.Replace(line, "4711", "-1", 1)} {
		_, err := parse(12, []byte(bad))
		assert.ErrorContains(t, err, "/proc/12/stat is malformed", bad)
	}
}

func TestRead(t *testing.T) {
	s, err := Read(os.Getpid())
	require.NoError(t, err)
	assert.Equal(t, os.Getppid(), s.Parent)
	_, err = Read(1<<22 + 1)
	assert.ErrorIs(t, err, os.ErrNotExist)
}
