module github.com/opensandbox/operator

go 1.26.0
