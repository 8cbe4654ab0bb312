package main

func main() {
	asRole()
}
