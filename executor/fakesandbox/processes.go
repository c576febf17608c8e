package fakesandbox

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Asleep is for how many seconds a process of a test sleeps. The fraction is of this test
// process, so that Processes finds its own, and not those of another one.
func Asleep(seconds int) string { return fmt.Sprintf("%d.%07d", seconds, os.Getpid()) }

// Processes counts those with that text in their arguments, anywhere but in this one.
func Processes(t testing.TB, text string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	count := 0
	for _, file := range files {
		if strings.HasPrefix(file, "/proc/"+strconv.Itoa(os.Getpid())+"/") {
			continue
		}
		if data, err := os.ReadFile(file); err == nil && bytes.Contains(data, []byte(text)) {
			count++
		}
	}
	return count
}
